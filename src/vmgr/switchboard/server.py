"""The switchboard at work: it does what the helper asks, one request after the other."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vmgr.switchboard import messages as m
from vmgr.switchboard.datagrams import DatagramForwarder
from vmgr.switchboard.denials import Denials
from vmgr.switchboard.firewall import EGRESS, Firewall, FirewallError, mark_of
from vmgr.switchboard.flows import forget_flows, forget_flows_to
from vmgr.switchboard.forwarder import Connection, Forwarder
from vmgr.switchboard.guard import Guard
from vmgr.switchboard.hostaccess import HostAccess
from vmgr.switchboard.hostdatagrams import HostDatagrams
from vmgr.switchboard.links import GATEWAY4, GATEWAY6, Links
from vmgr.switchboard.resolver import HostResolvers, Resolver
from vmgr.switchboard.tally import Tally

if TYPE_CHECKING:
    from vmgr.switchboard.upstream import UpstreamSockets

__all__ = ["Switchboard"]

_ALONE: Final = 60.0
"""Seconds without a helper and without a machine after which it ends by itself."""

log = logging.getLogger(__name__)


@dataclass
class _Plugged:
    plug: m.Plug
    interface: str


class Switchboard:
    """One user's.

    Args:
        listener: where helpers connect; the latest one is served.
        upstream: sockets of the host's network, for names.
    """

    def __init__(self, listener: socket.socket, upstream: UpstreamSockets) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._upstream = upstream
        self._links = Links()
        self._firewall = Firewall()
        self._resolvers = HostResolvers()
        self._names: dict[str, tuple[str, str]] = {}
        self._machines: dict[str, _Plugged] = {}
        self._forwards: dict[m.Forward, Forwarder | DatagramForwarder] = {}
        self._live: set[Connection] = set()
        self._host_addresses: list[str] = []
        self._host = HostAccess(self._live)
        self._host_datagrams = HostDatagrams()
        self._tally = Tally(self._told)
        self._guard = Guard(self._firewall.pin, self._denied, lambda: self._host_addresses)
        self._helper: socket.socket | None = None
        self._queue: asyncio.Queue[tuple[socket.socket, bytes, list[int]]] = asyncio.Queue()
        self._over = asyncio.Event()
        self.started = asyncio.Event()
        """Set when requests are served."""
        self._alone: asyncio.TimerHandle | None = None
        self._resolver: Resolver | None = None
        self._denials: Denials | None = None

    async def run(self) -> None:
        """Serve until told to end, or until nobody is left.

        Raises:
            FirewallError, OSError: this kernel does not do what is needed.
        """
        await self._links.open()
        # Taps of a switchboard that died stay: machines hold them, and the helper names them.
        self._guard.recover(self._firewall.pins())
        self._firewall.open()
        self._resolver = Resolver(
            self._names, self._upstream, (GATEWAY4, GATEWAY6), self._resolvers, guard=self._guard
        )
        try:
            self._denials = Denials(self._denied)
        except OSError as error:
            log.warning("denied connections are not told of: %s", error)
        self._listener.settimeout(0)
        self._loop.add_reader(self._listener, self._accept)
        self.started.set()
        self._leave_later()
        worker = self._loop.create_task(self._work(), name="switchboard")
        over = self._loop.create_task(self._over.wait(), name="the end")
        await asyncio.wait({worker, over}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        worker.cancel()
        for forward in list(self._forwards):
            self._forwards.pop(forward).close(reset=True)
        if self._denials is not None:
            self._denials.close()
        self._tally.close()
        self._host.close()
        self._host_datagrams.close()
        self._resolver.close()
        await self._links.close()

    # -- the helper ----------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            helper, _ = self._listener.accept()
        except OSError:
            return
        # In here our own user is 0, and every other one is not.
        credentials = helper.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        if uid != os.getuid():
            helper.close()
            return
        helper.settimeout(0)
        self._let_go()
        self._helper = helper
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None
        self._loop.add_reader(helper, self._read, helper)

    def _read(self, helper: socket.socket) -> None:
        for _ in range(16):
            try:
                packet, fds = m.receive(helper)
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                if helper is self._helper:
                    self._let_go()
                    self._leave_later()
                return
            self._queue.put_nowait((helper, packet, fds))

    def _let_go(self) -> None:
        if self._helper is not None:
            self._loop.remove_reader(self._helper)
            self._helper.close()
            self._helper = None

    def _leave_later(self) -> None:
        if self._alone is None:
            self._alone = self._loop.call_later(_ALONE, self._leave)

    def _leave(self) -> None:
        self._alone = None
        # A tap is gone when its machine is.
        if self._helper is None and not self._links.names():
            self._over.set()
        elif self._helper is None:
            self._leave_later()

    def _say(self, to: socket.socket | None, message: Any, fds: tuple[int, ...] = ()) -> None:
        if to is None or to is not self._helper:
            return
        try:
            m.send(to, message, fds)
        except OSError:  # gone, or it does not read: it comes again and asks
            self._let_go()
            self._leave_later()

    async def _work(self) -> None:
        while True:
            helper, packet, fds = await self._queue.get()
            try:
                await self._serve(helper, packet, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    async def _serve(self, helper: socket.socket, packet: bytes, fds: list[int]) -> None:
        try:
            request = m.decode(packet)
        except msgspec.MsgspecError as error:
            log.error("a request that is not understood: %s", error)  # noqa: TRY400
            return
        tap: int | None = None
        answer: m.Answer
        try:
            result, tap = await self._do(request, fds)
            answer = m.Answer(number=request.number, result=result)
        except (OSError, FirewallError) as error:
            answer = m.Answer(number=request.number, error=str(error))
        except Exception as error:
            # pyroute2's errors have no base class of their own.
            log.exception("%s failed", type(request).__name__)
            answer = m.Answer(number=request.number, error=f"{type(error).__name__}: {error}")
        self._say(helper, answer, () if tap is None else (tap,))
        if tap is not None:
            os.close(tap)
        if isinstance(request, m.Quit):
            self._over.set()

    async def _do(self, request: m.Asked, fds: list[int]) -> tuple[dict[str, Any], int | None]:
        if isinstance(request, m.Hello):
            return msgspec.to_builtins(self._plugs(request.machine)), None
        if isinstance(request, m.Plug):
            return await self._plug(request)
        if isinstance(request, m.Unplug):
            await self._unplug(request.machine)
        elif isinstance(request, m.Host):
            self._stock(fds)
            if request.addresses is not None:
                self._know_host(request.addresses)
            if request.resolvers is not None:
                self._resolvers.use(request.resolvers)
        elif isinstance(request, m.Outward):
            await self._links.lead_out(EGRESS)
        elif isinstance(request, m.Listen):
            self._listen(request.forward, fds)
        elif isinstance(request, m.Unlisten) and request.forward in self._forwards:
            self._forwards.pop(request.forward).close()
        return {}, None

    def _plugs(self, machine: str | None) -> m.Plugs:
        if machine is not None:
            forwards = [f for f in self._forwards if f.machine == machine]
            return m.Plugs(version=m.VERSION, forwards=forwards)
        connected = {
            forward.machine
            for forward, by in self._forwards.items()
            if isinstance(by, Forwarder) and by.connected
        }
        return m.Plugs(version=m.VERSION, connected=sorted(connected))

    # -- machines --------------------------------------------------------------------------------

    async def _plug(self, plug: m.Plug) -> tuple[dict[str, Any], int | None]:
        """The machine's end of a tap that is up, with all rules in place."""
        there = self._links.names()
        before = self._machines.get(plug.machine)
        if plug.interface is not None and plug.interface in there:
            name, fd = plug.interface, None
            if before is not None and before.interface != name:
                await self._unplug(plug.machine)
                before = None
        else:
            await self._unplug(plug.machine)
            before = None
            name, fd = self._links.make(set(there))
        if before is not None and _same(before.plug, plug):
            return {"interface": name}, None
        try:
            self._firewall.admit(name, plug, None if before is None else before.plug)
            self._machines[plug.machine] = _Plugged(plug, name)
            self._guard.admit(name, plug)
            self._permit()
            if before is None:
                await self._links.raise_link(name, plug.mac, plug.address4, plug.address6)
            else:  # what is open is judged anew
                self._names.pop(before.plug.name, None)
                forget_flows(mark_of(name))
                for address in (plug.address4, plug.address6):  # others' connections to it
                    forget_flows_to(address)
        except BaseException:
            if fd is not None:
                os.close(fd)
            if before is not None:  # what counted before counts on
                self._machines[plug.machine] = before
                self._names[before.plug.name] = (before.plug.address4, before.plug.address6)
                self._firewall.admit(name, before.plug, plug)
                self._guard.admit(name, before.plug)
                self._permit()
            raise
        self._names[plug.name] = (plug.address4, plug.address6)
        return {"interface": name}, fd

    def _permit(self) -> None:
        plugs = [one.plug for one in self._machines.values()]
        self._host.permit(plugs)
        self._host_datagrams.permit(plugs)

    def _stock(self, fds: list[int]) -> None:
        given = [socket.socket(fileno=fd) for fd in fds]
        try:
            self._host.stock([s for s in given if s.type == socket.SOCK_STREAM])
            self._host_datagrams.stock([s for s in given if s.type == socket.SOCK_DGRAM])
        finally:
            for sock in given:
                sock.detach()  # closed by whoever took the message

    def _know_host(self, addresses: list[str]) -> None:
        self._firewall.know_host(addresses)
        self._host_addresses = addresses

    async def _unplug(self, machine: str) -> None:
        for forward in [f for f in self._forwards if f.machine == machine]:
            self._forwards.pop(forward).close(reset=True)
        plugged = self._machines.pop(machine, None)
        if plugged is None:
            return
        self._names.pop(plugged.plug.name, None)
        self._tally.forget(machine)
        self._guard.dismiss(plugged.interface)
        self._permit()
        self._firewall.dismiss(plugged.interface, plugged.plug)
        await self._links.remove(plugged.interface)

    # -- ports -----------------------------------------------------------------------------------

    def _listen(self, forward: m.Forward, fds: list[int]) -> None:
        if len(fds) != 1:
            raise OSError("a forwarded port without its socket")
        if (before := self._forwards.pop(forward, None)) is not None:
            before.close()
        sock = socket.socket(fileno=os.dup(fds[0]))
        target = (forward.target, forward.target_port)
        if forward.protocol == "tcp":
            self._forwards[forward] = Forwarder(sock, target, self._live)
        else:
            self._forwards[forward] = DatagramForwarder(sock, target)

    # -- what happens ------------------------------------------------------------------------------

    def _denied(self, interface: str, data: dict[str, Any]) -> None:
        if "name" not in data:
            name = self._guard.name_of(interface, data.get("address", ""))
            if name is not None:
                data = {"name": name, **data}
        for machine, plugged in self._machines.items():
            if plugged.interface == interface:
                self._tally.add(machine, data)
                return

    def _told(self, machine: str, data: dict[str, Any]) -> None:
        self._say(self._helper, m.Event(event="denied", machine=machine, data=data))


def _same(one: m.Plug, other: m.Plug) -> bool:
    return one == msgspec.structs.replace(other, number=one.number, interface=one.interface)
