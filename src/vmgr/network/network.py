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
import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.errors import StateError, UnsupportedError, VmgrError
from vmgr.network.addresses import identity_of
from vmgr.network.egress import Egress
from vmgr.network.egress_choice import only_slirp4netns
from vmgr.network.hosts import AddressWatch, own_addresses
from vmgr.network.line import Line
from vmgr.network.processes import NetworkProcesses
from vmgr.switchboard import messages as m

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from vmgr.network.addresses import Identity
    from vmgr.network.egress_choice import Choice
    from vmgr.network.processes import Part
    from vmgr.network.reach import Reach
    from vmgr.paths import Paths
    from vmgr.spawner import Process

    Start = Callable[[Coroutine[object, object, None], str], object]

__all__ = ["Network", "Plugged"]

# Connections of machines to this computer at one time, and what stands for one of UDP.
_STOCK: Final = {socket.SOCK_STREAM: 256, socket.SOCK_DGRAM: 128}
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
        choose: which programs may lead to the internet.
    """

    def __init__(
        self,
        paths: Paths,
        start: Start,
        on_event: Callable[[str, str, dict[str, object]], None],
        required: Callable[[], Awaitable[bool]],
        choose: Callable[[], Awaitable[Choice]] = only_slirp4netns,
    ) -> None:
        self._processes = NetworkProcesses(paths, required, choose)
        self._paths = paths
        self._start = start
        self._on_event = on_event
        self._lock = asyncio.Lock()
        self._line: Line | None = None
        self._machines: dict[str, m.Plug] = {}
        self._closing = asyncio.Event()
        self._addresses: AddressWatch | None = None
        self._resolvers: list[str] | None = None
        self._stocked: dict[socket.SocketKind, Line] = {}
        self._watched: Process | None = None
        self.problem: str | None = None
        """Why there is no network at all, as far as is known."""
        self._egress = Egress(
            self._processes, start, lambda kind, data: on_event(kind, "", data),
            lambda: bool(self._machines), self._outward,
        )  # fmt: skip

    @property
    def egress_problem(self) -> str | None:
        """Why machines have no internet."""
        return self._egress.problem

    @property
    def egress_in_use(self) -> tuple[str, str | None] | None:
        """Which program leads to the internet, and why it is not the wanted one; None: none."""
        egress, program = self._processes.egress, self._processes.egress_program
        if egress is None or not egress.running or program is None:
            return None
        return program, self._processes.egress_note

    def watch_addresses(self) -> None:
        """Follow this computer's addresses: a network that it joins gives it others."""
        try:
            self._addresses = AddressWatch(self._tell_hosts)
        except OSError as error:
            log.warning("this computer's addresses are not followed: %s", error)

    def _tell_hosts(self, addresses: list[str]) -> None:
        self._start(self._tell_host(m.Host(addresses=addresses)), "this computer's addresses")

    async def use_resolvers(self, servers: list[str]) -> None:
        """Names are resolved by these from now on."""
        self._resolvers = servers
        await self._tell_host(m.Host(resolvers=servers))

    async def _tell_host(self, about: m.Host) -> None:
        try:
            async with self._lock:
                if self._line is not None and not self._line.ended.is_set():
                    await self._line.ask(about)
        except (VmgrError, OSError, TimeoutError) as error:
            log.warning("the switchboard does not hear of a change of this host: %s", error)

    async def _stock(self, line: Line, plug: m.Plug) -> None:
        """See that a switchboard has sockets for a machine that reaches ports of this computer."""
        wanted = {socket.SOCK_STREAM: plug.host_ports, socket.SOCK_DGRAM: plug.host_udp_ports}
        for kind, ports in wanted.items():
            if not ports or self._stocked.get(kind) is line:
                continue
            for _ in range(_STOCK[kind] // m.MAX_FDS):
                with contextlib.ExitStack() as stack:
                    made = [
                        stack.enter_context(socket.socket(socket.AF_INET, kind))
                        for _ in range(m.MAX_FDS)
                    ]
                    await line.ask(m.Host(), tuple(sock.fileno() for sock in made))
            self._stocked[kind] = line

    async def adopt(self) -> None:
        """Go on with what an earlier helper started."""
        await self._processes.adopt()
        if (switchboard := self._processes.switchboard) is not None:
            try:
                known, _ = await self._connected(switchboard).ask(m.Hello())
                if known.get("version") != m.VERSION:  # it would not know what we ask of it
                    await switchboard.stop()
                else:  # it may have been without a helper while this computer's addresses changed
                    await self._tell_host(m.Host(addresses=own_addresses()))
            except (VmgrError, OSError, TimeoutError) as error:
                log.warning("the switchboard is not reached: %s", error)
        if self._processes.egress is not None:
            await self._egress.ensure()
        self._watch_holder()

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

    async def plug(self, machine: str, name: str, number: int, reach: Reach) -> Plugged:
        """Make a place for a machine that starts; never fails."""
        request = _plug(machine, name, identity_of(machine, number), reach)
        try:
            async with self._lock:
                _require_tun()
                line = await self._ready()
                await self._stock(line, request)
                result, fds = await line.ask(request)
        except (VmgrError, OSError, TimeoutError) as error:
            self.problem = error.message if isinstance(error, VmgrError) else str(error)
            log.warning("machine %s has no network: %s", name, self.problem)
            return Plugged(None, problem=self.problem)
        self.problem = None
        interface = str(result.get("interface"))
        self._machines[machine] = _held(request, interface)
        return Plugged(interface, fds[0] if fds else None)

    async def readopt(
        self, machine: str, name: str, number: int, reach: Reach, interface: str
    ) -> None:
        """A machine that runs already holds `interface`."""
        plug = _held(_plug(machine, name, identity_of(machine, number), reach), interface)
        self._machines[machine] = plug
        try:
            async with self._lock:
                line = await self._ready()
                # One that knows it already does nothing, unless what it may reach has changed.
                await self._stock(line, plug)
                _close(await line.ask(plug))
        except (VmgrError, OSError, TimeoutError) as error:
            log.warning("machine %s is not in the network: %s", name, error)

    async def change(
        self, machine: str, name: str, number: int, reach: Reach, interface: str
    ) -> None:
        """A machine that is plugged in may reach something else from now on.

        Raises:
            StateError: the switchboard does not do it; what counted before counts on.
        """
        plug = _held(_plug(machine, name, identity_of(machine, number), reach), interface)
        async with self._lock:
            line = await self._ready()
            await self._stock(line, plug)
            _close(await line.ask(plug))
            self._machines[machine] = plug

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

    async def forwards(self, machine: str) -> list[m.Forward]:
        """What the switchboard serves of a machine; nothing when there is none."""
        import msgspec

        if self._line is None or self._line.ended.is_set():
            return []
        result, _ = await self._line.ask(m.Hello(machine=machine))
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
        if self._addresses is not None:
            self._addresses.close()
        await self._egress.close()
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
            await line.ask(m.Host(addresses=own_addresses(), resolvers=self._resolvers))
            for plug in list(self._machines.values()):
                try:
                    await self._stock(line, plug)
                    _close(await line.ask(plug))
                except StateError as error:  # the others are plugged in all the same
                    log.warning("machine %s is not in the network: %s", plug.name, error.message)
                    self._on_event("machine.network", plug.machine, {"problem": error.message})
            if self._processes.egress is not None:
                await self._outward()
        self._watch_holder()
        await self._egress.ensure()
        assert self._line is not None  # noqa: S101 (connected above)
        return self._line

    def _connected(self, switchboard: Process) -> Line:
        self._line = Line.connect(self._paths.switchboard_socket, self._event)
        self._start(self._watch_switchboard(self._line, switchboard), "switchboard")
        return self._line

    async def _outward(self) -> None:
        """Have the switchboard set what the egress process does not."""
        if self._line is not None and not self._line.ended.is_set():
            await self._line.ask(m.Outward())

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

    def _watch_holder(self) -> None:
        holder = self._processes.holder
        if holder is not None and holder is not self._watched:
            self._watched = holder
            self._start(self._replaced(holder), "holder")

    async def _replaced(self, holder: Process) -> None:
        """The namespaces are kept by who is in them, too; yet all of those may end."""
        await holder.wait()
        if self._closing.is_set() or not self._machines:
            return  # started when it is needed
        log.warning("the holder of the network has ended; another is started")
        try:
            async with self._lock:
                await self._processes.ensure_holder()
        except (VmgrError, OSError, TimeoutError) as error:
            log.error("the network has no holder: %s", error)  # noqa: TRY400
            return
        self._watch_holder()
        self._on_event("network.restarted", "", {"process": "holder"})

    async def _closed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True

    def _event(self, event: m.Event) -> None:
        self._on_event(f"network.{event.event}", event.machine, dict(event.data))


def _plug(machine: str, name: str, identity: Identity, reach: Reach) -> m.Plug:
    return m.Plug(
        machine=machine,
        name=name,
        mac=identity.mac,
        address4=str(identity.address4),
        address6=str(identity.address6),
        access=reach.access,
        rules=reach.rules,
        host_ports=list(reach.host_ports),
        host_udp_ports=list(reach.host_udp_ports),
    )


def _held(plug: m.Plug, interface: str) -> m.Plug:
    import msgspec

    return msgspec.structs.replace(plug, interface=interface)


def _close(answer: tuple[object, list[int]]) -> None:
    """A machine that should hold its tap and does not has ended."""
    for fd in answer[1]:
        os.close(fd)


def _require_tun() -> None:
    """Raise when no tap can be made: the processes would start, be of no use, and stay."""
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise UnsupportedError(f"the network cannot be set up: {_TUN} may not be opened")
