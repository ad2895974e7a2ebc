"""Ports that appear by themselves: what a machine says is listened on, as far as the host lets it.

The agent tells who listens; everything else is decided here: which ports may appear (`ports.auto`),
how many, under which number, and how often that may change. A machine that lies opens nothing that
one which listens could not.

What listens on an address that reaches from outside is served by the switchboard; the rest (the
machine's own 127.0.0.1, machines on QEMU's network) goes through the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from vmgr.api.models import PortForward
from vmgr.errors import VmgrError
from vmgr.helper.serving import AGENT, bound
from vmgr.machine.ports import PortRule
from vmgr.network import identity_of
from vmgr.switchboard.messages import Forward

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    from vmgr.agent import PortListener
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.helper.serving import Serving
    from vmgr.network.addresses import Identity

__all__ = ["Automatic", "Key", "Target", "targets"]

_MOST: Final = 100  # ports of one machine
_BURST: Final = 64  # changes at once, and then per second
_RATE: Final = 20.0
_TRIES: Final = 50  # numbers after one that is taken
_PRIVILEGED: Final = 1_024
_SHIFT: Final = 8_000  # 80 becomes 8080 where it is root's

Key = tuple[Literal["tcp", "udp"], int]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Where in a machine a port leads to."""

    address: str
    """One of the machine's, or `AGENT`."""
    inside: tuple[bytes, ...] = ()


@dataclass
class _Opened:
    target: Target
    forwards: list[Forward]
    host_port: int
    problem: str | None = None


@dataclass
class _Followed:
    """A machine whose ports appear."""

    rule: PortRule
    latest: list[PortListener] | None = None
    """Not applied yet."""
    known: list[PortListener] = field(default_factory=list)
    opened: dict[Key, _Opened] = field(default_factory=dict)
    work: asyncio.Task[None] | None = None
    fresh: bool = True
    """What an earlier helper opened has not been looked at."""
    private: set[Key] = field(default_factory=set)
    """What leads through the agent."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a port is opened or closed: one may have to give way while it is being opened."""
    limited: bool = False
    tokens: float = _BURST
    counted: float = 0.0


class Automatic:
    """The automatic ports of all machines."""

    def __init__(self, helper: Helper, serving: Serving) -> None:
        self._helper = helper
        self._serving = serving
        self._followed: dict[str, _Followed] = {}

    # -- what happens ------------------------------------------------------------------------------

    def follow(self, machine: Machine) -> None:
        """A machine's agent is reached: ask it, in the background."""
        self._helper.watchers.start(self._follow(machine), name=f"ports of {machine.name}")

    async def refresh(self) -> None:
        """The settings have changed."""
        for machine in self._helper.machines.all():
            if machine.channel is not None:
                self.follow(machine)

    def heard(self, machine: Machine, listeners: list[PortListener]) -> None:
        """The agent says who listens."""
        state = self._followed.get(machine.row.id)
        if state is None:
            return
        state.latest = state.known = listeners
        if state.work is None or state.work.done():
            state.work = self._helper.watchers.start(
                self._work(machine, state), name=f"opening ports of {machine.name}"
            )

    def again(self, machine: Machine) -> None:
        """What was asked for by name has changed."""
        if (state := self._followed.get(machine.row.id)) is not None:
            self.heard(machine, state.known)

    async def give_way(self, protocol: str, host_port: int) -> list[Machine]:
        """A port is asked for: whoever has its number automatically lets go of it.

        Returns:
            The machines to call `again` for, once the port is taken.
        """
        moved = []
        for machine in self._helper.machines.all():
            if (state := self._followed.get(machine.row.id)) is None:
                continue
            for key, opened in list(state.opened.items()):
                if key[0] == protocol and opened.host_port == host_port:
                    await self._close(machine, state, key)
                    moved.append(machine)
        return moved

    def restarted(self) -> None:
        """A new switchboard serves nothing yet."""
        for machine in self._helper.machines.all():
            if (state := self._followed.get(machine.row.id)) is not None:
                state.opened = {k: o for k, o in state.opened.items() if o.target.address == AGENT}
                self.heard(machine, state.known)

    def ended(self, machine: Machine) -> None:
        """A machine has ended; what served its ports knows that by itself."""
        state = self._followed.pop(machine.row.id, None)
        machine.automatic = []
        if state is not None and state.work is not None:
            state.work.cancel()

    # -- inside ------------------------------------------------------------------------------------

    async def _follow(self, machine: Machine) -> None:
        channel = machine.channel
        try:
            rule = await self._rule(machine)
            if channel is None or "ports" not in machine.greeting.features:
                return
            before = self._followed.get(machine.row.id)
            if rule.off:
                if before is not None:
                    before.rule = rule
                    self.heard(machine, [])
                return
            listeners = await channel.watch_ports()
        except VmgrError as error:
            log.warning("machine %s: its ports do not appear: %s", machine.name, error)
            return
        if machine.channel is not channel or machine.stopped.is_set():
            return
        state = self._followed.setdefault(machine.row.id, _Followed(rule))
        state.rule = rule
        self.heard(machine, listeners)

    async def _rule(self, machine: Machine) -> PortRule:
        row = machine.row
        configured = PortRule.parse(str((await self._helper.settings()).get("ports.auto")))
        if row.auto_ports is False or (row.auto_ports is None and row.ephemeral):
            return PortRule("off")
        if row.auto_ports and configured.off:
            return PortRule("on", everything=True)
        return configured

    async def _work(self, machine: Machine, state: _Followed) -> None:
        while state.latest is not None:
            listeners, state.latest = state.latest, None
            try:
                if state.fresh:
                    await self._look_back(machine, state)
                await self._apply(machine, state, listeners)
            except VmgrError as error:  # the switchboard went: a new one comes here again
                log.warning("machine %s: its ports: %s", machine.name, error)

    async def _look_back(self, machine: Machine, state: _Followed) -> None:
        """Take over what an earlier helper had the switchboard open."""
        explicit = self._helper.ports.explicit(machine)
        groups: dict[Key, list[Forward]] = {}
        for forward in await self._serving.served(machine):
            if forward.machine == machine.row.id and forward not in explicit:
                groups.setdefault((forward.protocol, forward.target_port), []).append(forward)
        for key, forwards in groups.items():
            main = next((f for f in forwards if f.host == "127.0.0.1"), None)
            if main is None or main.target == AGENT:
                for forward in forwards:
                    await self._serving.unserve(forward)
                continue
            state.opened[key] = _Opened(Target(main.target), forwards, main.host_port)
        state.fresh = False

    async def _apply(
        self, machine: Machine, state: _Followed, listeners: list[PortListener]
    ) -> None:
        row = machine.row
        assert row.number is not None  # noqa: S101 (given when it was made or found)
        identity = identity_of(row.id, row.number)
        wanted = targets(listeners, identity, direct=row.interface is not None)
        private = {key for key, target in wanted.items() if target.address == AGENT}
        named = {(port.protocol, port.guest_port) for port in row.ports}
        for _ in named & (private ^ state.private):
            await self._allowance(state)
        state.private = private
        await self._helper.ports.lead(machine, private)
        wanted = {
            key: target
            for key, target in wanted.items()
            if state.rule.admits(*key) and key not in named
        }
        for key in [k for k, o in state.opened.items() if wanted.get(k) != o.target]:
            await self._allowance(state)
            await self._close(machine, state, key)
        for key in sorted(wanted.keys() - state.opened.keys()):
            if len(state.opened) >= _MOST:
                self._limit(machine, state)
                break
            await self._allowance(state)
            async with state.changing:
                await self._open(machine, state, key, wanted[key])
        machine.automatic = [_shown(key, opened) for key, opened in sorted(
            state.opened.items(), key=lambda item: item[0][::-1]
        )]  # fmt: skip

    async def _allowance(self, state: _Followed) -> None:
        """Wait until one more change is due: a machine may change its mind as often as it likes."""
        now = asyncio.get_running_loop().time()
        state.tokens = min(_BURST, state.tokens + (now - state.counted) * _RATE)
        state.counted = now
        state.tokens -= 1
        if state.tokens < 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(-state.tokens / _RATE):
                    await self._helper.stopping.wait()

    def _limit(self, machine: Machine, state: _Followed) -> None:
        if not state.limited:
            state.limited = True
            self._helper.events.publish("port.limit", machine.name, most=_MOST)
            log.warning("machine %s listens on more than %d ports", machine.name, _MOST)

    async def _close(self, machine: Machine, state: _Followed, key: Key) -> None:
        async with state.changing:
            if (opened := state.opened.pop(key, None)) is None:
                return  # it has just given way to one that was asked for
            for forward in opened.forwards:
                await self._serving.unserve(forward)
        self._helper.events.publish(
            "port.closed", machine.name, port=opened.host_port, guest_port=key[1],
            protocol=key[0], automatic=True,
        )  # fmt: skip

    async def _open(self, machine: Machine, state: _Followed, key: Key, target: Target) -> None:
        row = machine.row
        assert row.number is not None  # noqa: S101 (given when it was made or found)

        def forward(host: str, port: int) -> Forward:
            return Forward(
                machine=row.id, protocol=key[0], host=host, host_port=port,
                target=target.address, target_port=key[1],
            )  # fmt: skip

        pairs: list[tuple[Forward, socket.socket]] = []
        host_port, problem = 0, None
        for candidate in _candidates(key[1]):
            try:
                pairs = _both(forward("127.0.0.1", candidate), forward("::1", candidate))
            except OSError as error:
                problem = problem or _why(key[1], error)
                continue
            host_port = candidate
            break
        # Its own address has its own number, where that can be had.
        own = forward(str(identity_of(row.id, row.number).loopback), key[1])
        try:
            pairs.append((own, bound(own)))
        except OSError as error:
            log.info("machine %s: %s:%d: %s", machine.name, own.host, own.host_port, error)
        if not pairs:
            self._helper.events.publish(
                "port.failed", machine.name, port=key[1], protocol=key[0], problem=problem
            )
            return
        # Where no number was free on 127.0.0.1, its own address is all that it has.
        opened = _Opened(target, [f for f, _ in pairs], host_port or key[1], problem)
        state.opened[key] = opened
        try:
            while pairs:
                one, sock = pairs.pop(0)
                await self._serving.serve(machine, one, sock, target.inside)
        finally:
            for _, sock in pairs:
                sock.close()
        facts = {} if problem is None else {"problem": problem}
        self._helper.events.publish(
            "port.opened", machine.name, address=opened.forwards[0].host, port=opened.host_port,
            guest_port=key[1], protocol=key[0], automatic=True, **facts,
        )  # fmt: skip


def targets(
    listeners: Iterable[PortListener], identity: Identity, *, direct: bool
) -> dict[Key, Target]:
    """How each port that somebody listens on is reached.

    Args:
        direct: the machine's addresses are reached from the switchboard.
    """
    grouped: dict[Key, list[PortListener]] = {}
    for one in listeners:
        if not one.address.is_multicast and not one.address.is_link_local:
            grouped.setdefault((one.protocol, one.port), []).append(one)
    found: dict[Key, Target] = {}
    for key, group in grouped.items():
        any4 = any(
            str(one.address) in {"0.0.0.0", str(identity.address4)}  # noqa: S104 (compared)
            or (str(one.address) == "::" and not one.only6)
            for one in group
        )
        any6 = any(str(one.address) in {"::", str(identity.address6)} for one in group)
        if direct and (any4 or any6):
            found[key] = Target(str(identity.address4 if any4 else identity.address6))
            continue
        inside = [_within(one) for one in group]
        inside.sort(key=lambda address: (not address.is_loopback, address.version, address.packed))
        packed = dict.fromkeys(address.packed for address in inside)
        found[key] = Target(AGENT, tuple(packed)[:8])
    return found


def _within(one: PortListener) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address at which a program in the machine reaches it."""
    if not one.address.is_unspecified:
        return one.address
    four = one.address.version == 4 or not one.only6  # noqa: PLR2004 (of IP)
    return ipaddress.ip_address("127.0.0.1" if four else "::1")


def _candidates(port: int) -> Iterator[int]:
    yield port
    first = port if port >= _PRIVILEGED else port + _SHIFT
    if first != port:
        yield first
    yield from range(first + 1, min(first + _TRIES, 65_536))


def _both(four: Forward, six: Forward) -> list[tuple[Forward, socket.socket]]:
    """Sockets on both loopback addresses; on the first alone where there is no IPv6.

    Raises:
        OSError: the number cannot be had.
    """
    pairs = [(four, bound(four))]
    try:
        pairs.append((six, bound(six)))
    except OSError as error:
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            pairs[0][1].close()
            raise
    return pairs


def _why(port: int, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"port {port} is for root only on this computer"
    return f"port {port} of this computer is taken"


def _shown(key: Key, opened: _Opened) -> PortForward:
    return PortForward(
        address=opened.forwards[0].host,
        host_port=opened.host_port,
        guest_port=key[1],
        protocol=key[0],
        open=True,
        automatic=True,
        problem=opened.problem,
        via="agent" if opened.target.address == AGENT else "network",
    )
