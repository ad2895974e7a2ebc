"""The network as the helper drives it.

Theory of operation: `plug` gives a machine's VMM its tap, `unplug` takes it back when the VMM has
ended, `readopt` names to a switchboard what machines hold already. The processes are started when
the first machine needs them and end with the last helper that has no machine. A switchboard or an
egress that dies is started again at once; what they did goes on meanwhile as far as the kernel does
it. Nothing here may keep a machine from starting: it starts without a network, and a note says
so.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vmgr.errors import VmgrError
from vmgr.network.addresses import identity_of
from vmgr.network.line import Line
from vmgr.network.processes import NetworkProcesses
from vmgr.switchboard import messages as m

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from vmgr.network.addresses import Identity
    from vmgr.network.processes import Part
    from vmgr.paths import Paths
    from vmgr.spawner import Process

    Start = Callable[[Coroutine[object, object, None], str], object]

__all__ = ["Access", "Network", "Plugged"]

Access = Literal["full", "internet", "none"]
_AGAIN: Final = 1.0  # seconds between two starts of a process that keeps ending

_TUN: Final = "/dev/net/tun"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugged:
    """A machine's place in the network."""

    interface: str | None
    """None: it has none, and `problem` says why."""
    fd: int | None = None
    """Its tap, for the VMM; whoever plugged it in closes it."""
    problem: str | None = None


class Network:
    """One user's network.

    Args:
        paths: where sockets and records are.
        start: runs a coroutine in the background, by a name.
        on_event: told of what happens: kind, machine's id, facts.
        required: whether its processes may not run without a sandbox of namespaces.
    """

    def __init__(
        self,
        paths: Paths,
        start: Start,
        on_event: Callable[[str, str, dict[str, object]], None],
        required: Callable[[], Awaitable[bool]],
    ) -> None:
        self._processes = NetworkProcesses(paths, required)
        self._paths = paths
        self._start = start
        self._on_event = on_event
        self._lock = asyncio.Lock()
        self._line: Line | None = None
        self._machines: dict[str, m.Plug] = {}
        self._closing = asyncio.Event()
        self.problem: str | None = None
        """Why there is no network at all, as far as is known."""
        self.egress_problem: str | None = None
        """Why machines have no internet."""

    async def adopt(self) -> None:
        """Go on with what an earlier helper started."""
        await self._processes.adopt()
        if (switchboard := self._processes.switchboard) is not None:
            try:
                self._connected(switchboard)
            except OSError as error:
                log.warning("the switchboard is not reached: %s", error)
        if (egress := self._processes.egress) is not None:
            self._start(self._watch_egress(egress), "egress")

    def parts(self) -> list[Part]:
        """The processes that make it, for who looks at them."""
        return self._processes.parts()

    # -- machines ------------------------------------------------------------------------------

    async def usable(self) -> bool:
        """Whether machines can be plugged in; starts what that takes."""
        # Taps are made by the switchboard, which has no more right to this than we have.
        if not os.access(_TUN, os.R_OK | os.W_OK):
            return False
        try:
            async with self._lock:
                await self._ready()
        except (VmgrError, OSError, TimeoutError) as error:
            self.problem = error.message if isinstance(error, VmgrError) else str(error)
            return False
        return True

    async def plug(self, machine: str, name: str, number: int, access: Access) -> Plugged:
        """Make a place for a machine that starts; never fails."""
        request = _plug(machine, name, identity_of(machine, number), access)
        try:
            async with self._lock:
                line = await self._ready()
                result, fds = await line.ask(request)
        except (VmgrError, OSError, TimeoutError) as error:
            self.problem = error.message if isinstance(error, VmgrError) else str(error)
            log.warning("machine %s has no network: %s", name, self.problem)
            return Plugged(None, problem=self.problem)
        self.problem = None
        interface = str(result.get("interface"))
        self._machines[machine] = _held(request, interface)
        return Plugged(interface, fds[0] if fds else None, self.egress_problem)

    async def readopt(
        self, machine: str, name: str, number: int, access: Access, interface: str
    ) -> None:
        """A machine that runs already holds `interface`."""
        plug = _held(_plug(machine, name, identity_of(machine, number), access), interface)
        self._machines[machine] = plug
        try:
            async with self._lock:
                line = await self._ready()
                known, _ = await line.ask(m.Hello())
                if machine not in known.get("machines", []):
                    _close(await line.ask(plug))
        except (VmgrError, OSError, TimeoutError) as error:
            log.warning("machine %s is not in the network: %s", name, error)

    async def unplug(self, machine: str) -> None:
        """A machine's VMM has ended."""
        if self._machines.pop(machine, None) is None or self._line is None:
            return
        try:
            async with self._lock:
                await self._line.ask(m.Unplug(machine=machine))
        except (VmgrError, OSError, TimeoutError) as error:
            log.warning("a machine is still plugged in: %s", error)

    # -- ports -----------------------------------------------------------------------------------

    async def listen(self, forward: m.Forward, fd: int) -> None:
        """Let the switchboard serve a bound socket.

        Raises:
            StateError: it does not.
        """
        async with self._lock:
            await (await self._ready()).ask(m.Listen(forward=forward), (fd,))

    async def unlisten(self, forward: m.Forward) -> None:
        """Let it stop; nothing happens when there is none."""
        if self._line is not None:
            async with self._lock:
                await self._line.ask(m.Unlisten(forward=forward))

    async def forwards(self) -> list[m.Forward]:
        """What the switchboard serves; nothing when there is none."""
        import msgspec

        if self._line is None or self._line.ended.is_set():
            return []
        result, _ = await self._line.ask(m.Hello())
        return msgspec.convert(result.get("forwards", []), list[m.Forward])

    async def connected(self) -> set[str]:
        """The ids of machines that somebody is connected to by a forwarded port."""
        import msgspec

        if self._line is None or self._line.ended.is_set():
            return set()
        result, _ = await self._line.ask(m.Hello())
        return set(msgspec.convert(result.get("connected", []), list[str]))

    # -- what is counted --------------------------------------------------------------------------

    @property
    def namespace_pid(self) -> int | None:
        """A process in whose network namespace all taps are; None when there is none."""
        holder = self._processes.holder
        return holder.pid if holder is not None and holder.running else None

    # -- the end ---------------------------------------------------------------------------------

    async def close(self, *, keep: bool) -> None:
        """Hang up. Unless machines need them, the processes end too.

        Args:
            keep: machines run.
        """
        self._closing.set()
        if self._line is not None:
            self._line.close()
        if not keep:
            async with self._lock:
                await self._processes.stop()

    # -- inside ----------------------------------------------------------------------------------

    async def _ready(self) -> Line:
        """The line to a switchboard that runs; started where it does not. The lock is held."""
        if self._line is None or self._line.ended.is_set():
            await self._processes.start_switchboard()
            assert self._processes.switchboard is not None  # noqa: S101 (just started)
            line = self._connected(self._processes.switchboard)
            for plug in self._machines.values():
                _close(await line.ask(plug))
        if self._processes.egress is None or not self._processes.egress.running:
            await self._begin_egress()
        assert self._line is not None  # noqa: S101 (connected above)
        return self._line

    def _connected(self, switchboard: Process) -> Line:
        self._line = Line.connect(self._paths.switchboard_socket, self._event)
        self._start(self._watch_switchboard(self._line, switchboard), "switchboard")
        return self._line

    async def _begin_egress(self) -> None:
        """No internet is no reason for no network."""
        try:
            await self._processes.start_egress()
        except (VmgrError, OSError) as error:
            self.egress_problem = error.message if isinstance(error, VmgrError) else str(error)
            log.warning("%s", self.egress_problem)
            return
        self.egress_problem = None
        assert self._processes.egress is not None  # noqa: S101 (just started)
        self._start(self._watch_egress(self._processes.egress), "egress")

    async def _watch_switchboard(self, line: Line, switchboard: Process) -> None:
        await line.ended.wait()
        while not self._closing.is_set():
            log.warning("the switchboard has ended; another is started")
            # One that cannot be spoken to is of no use.
            await switchboard.stop()
            if not self._machines:
                return  # started when it is needed
            try:
                async with self._lock:
                    if self._line is line:
                        await self._ready()
            except (VmgrError, OSError, TimeoutError) as error:
                self.problem = str(error)
                log.error("the network cannot be mended: %s", error)  # noqa: TRY400
                if await self._closed_within(_AGAIN):
                    return
                continue
            self._on_event("network.restarted", "", {"process": "switchboard"})
            return

    async def _watch_egress(self, egress: Process) -> None:
        status = await egress.wait()
        if self._closing.is_set() or self._processes.egress is not egress:
            return
        log.warning("the egress process %s; another is started", status)
        if await self._closed_within(_AGAIN) or not self._machines:
            return
        async with self._lock:
            if self._processes.egress is egress:
                await self._begin_egress()
        self._on_event("network.restarted", "", {"process": "egress"})

    async def _closed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True

    def _event(self, event: m.Event) -> None:
        self._on_event(f"network.{event.event}", event.machine, dict(event.data))


def _plug(machine: str, name: str, identity: Identity, access: Access) -> m.Plug:
    return m.Plug(
        machine=machine,
        name=name,
        mac=identity.mac,
        address4=str(identity.address4),
        address6=str(identity.address6),
        access=access,
        host4=host_addresses(),
    )


def host_addresses(table: Path = Path("/proc/net/fib_trie")) -> list[str]:
    """This computer's own IPv4 addresses but those of its loopback, which nobody reaches anyway.

    The kernel's routing table lists each as a leaf, `|-- ADDRESS`, with `/32 host LOCAL` below it.
    """
    found: set[str] = set()
    address = ""
    try:
        text = table.read_text(encoding="ascii")  # procfs never blocks
    except OSError:
        return []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words == ["/32", "host", "LOCAL"] and not address.startswith("127."):
            found.add(str(ipaddress.IPv4Address(address)))
    return sorted(found)


def _held(plug: m.Plug, interface: str) -> m.Plug:
    import msgspec

    return msgspec.structs.replace(plug, interface=interface)


def _close(answer: tuple[object, list[int]]) -> None:
    """A machine that should hold its tap and does not has ended."""
    for fd in answer[1]:
        os.close(fd)
