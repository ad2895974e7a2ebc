"""Names for machines: each other's, and the world's as this computer resolves them.

Machines ask the gateway. `NAME.vmgr.internal` is answered from the table of machines, and so is
which machine an address of theirs is (ping, ssh and sudo ask that by themselves, and would wait).
All else goes to the resolvers that /etc/resolv.conf names *now*, so a VPN that comes up or goes is
followed with the next question. Those are asked from sockets of the host's network, made before
this process entered its own: a resolver on 127.0.0.53 works, and names do not depend on the egress
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import secrets
import socket
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import dns.rrset

from vmgr.switchboard.guard import HOST_NAME
from vmgr.switchboard.links import HOST4, HOST6

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmgr.switchboard.guard import Guard
    from vmgr.switchboard.upstream import UpstreamSockets

__all__ = ["DOMAIN", "HostResolvers", "Resolver", "disconnect"]

DOMAIN: Final = "vmgr.internal"
_OURS: Final = (
    ipaddress.ip_network("198.19.0.0/16"),
    ipaddress.ip_network("fd76:6d67:7200::/112"),
)
"""Of machines (`vmgr.network.addresses`): nobody in the world could say whose they are."""
_LARGEST: Final = 65_535
_PENDING: Final = 2_048  # questions under way; more are not answered, and asked again
_PENDING_EACH: Final = 256  # of one machine, so that none takes all
_PATIENCE: Final = 2.0  # seconds for one resolver
_TCP_PATIENCE: Final = 10.0
_STREAMS: Final = 64  # TCP connections of machines
_STREAMS_EACH: Final = 3  # of one address; a machine has two, and upstream has 8 for each family
_QUESTION_MOST: Final = 4_096  # bytes; a name and what EDNS adds take a tenth of it
_QUESTIONS_EACH: Final = 256  # of one connection
_TTL: Final = 5
_HEADER: Final = struct.Struct("!6H")
_ADDITIONAL: Final = 4
_RESOLV_CONF_MOST: Final = 65_536


@dataclass
class HostResolvers:
    """The host's resolvers, read again when the file has changed (or another took its place)."""

    path: Path = Path("/etc/resolv.conf")
    _seen: tuple[int, ...] = ()
    _found: list[str] = field(default_factory=list)
    _told: list[str] | None = None
    _told_at: tuple[int, ...] | None = None

    def use(self, servers: list[str]) -> None:
        """The helper says which they are now.

        It sees more: a sandbox may show a file that the host has long replaced. A file that is seen
        to change afterwards (there may be no helper) counts again.
        """
        self._told = None
        if not servers:
            return
        self.addresses()
        self._told, self._told_at = list(servers), self._seen

    def addresses(self) -> list[str]:
        """Up to three, as the C library takes them."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._seen = ()
            return self._told if self._told is not None and self._told_at == () else []
        try:
            about = os.fstat(fd)
            seen = (about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size)
            if seen != self._seen and stat.S_ISREG(about.st_mode):
                text = os.read(fd, _RESOLV_CONF_MOST).decode(errors="replace")
                self._found = _nameservers(text)
                self._seen = seen
        except OSError:
            return []
        finally:
            os.close(fd)
        return self._found if self._told is None or self._seen != self._told_at else self._told


def _nameservers(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(words[1])
                found.append(words[1])
    return found[:3] or ["127.0.0.1"]  # resolv.conf(5): the default is this computer


@dataclass
class _Question:
    """One that is under way: who asked, what, and which resolvers are left."""

    wire: bytes
    number: int
    reply_on: socket.socket
    client: Any
    left: list[str]
    asked: tuple[str, int] | None = None
    timer: asyncio.TimerHandle | None = None


class Resolver:
    """Answers on the gateway's port 53.

    Args:
        names: addresses of machines by name, kept by others.
        upstream: sockets of the host's network.
        addresses: of the gateway.
        guard: who may ask for what.
    """

    def __init__(  # noqa: PLR0917 (each has its default)
        self,
        names: Mapping[str, tuple[str, str]],
        upstream: UpstreamSockets,
        addresses: tuple[str, ...],
        resolvers: HostResolvers | None = None,
        port: int = 53,
        guard: Guard | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._names = names
        self._upstream = upstream
        self._resolvers = resolvers or HostResolvers()
        self._guard = guard
        self._pending: dict[tuple[socket.socket, int], _Question] = {}
        self._asking: Counter[str] = Counter()
        self._sockets: list[socket.socket] = []
        self._streams: set[asyncio.Task[None]] = set()
        self._streaming: Counter[str] = Counter()
        self._free = {family: list(socks) for family, socks in upstream.stream.items()}
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._sockets.append(sock)
            sock.bind((address, port))
            self._loop.add_reader(sock, self._asked, sock)
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(64)
            self._loop.add_reader(listener, self._accept, listener)
        for socks in upstream.datagram.values():
            for sock in socks:
                self._loop.add_reader(sock, self._answered, sock)

    def close(self) -> None:
        """End it."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        for task in self._streams:
            task.cancel()
        for family, socks in self._upstream.datagram.items():
            for sock in socks:
                self._loop.remove_reader(sock)
                sock.close()
            for sock in self._upstream.stream[family]:
                sock.close()

    # -- what machines ask ---------------------------------------------------------------------

    def _asked(self, sock: socket.socket) -> None:
        for _ in range(64):
            try:
                wire, client = sock.recvfrom(_LARGEST)
            except OSError:
                return
            answer = self.local_answer(wire, client[0])
            if answer is not None:
                with contextlib.suppress(OSError):
                    sock.sendto(answer, client)
            else:
                self._forward(wire, sock, client)

    def local_answer(self, wire: bytes, client: str = "") -> bytes | None:
        """The answer to what we know ourselves or what is no question; None: ask the world.

        An empty answer is none at all.

        Args:
            wire: the question.
            client: the address of who asks.
        """
        if not _asks_once(wire):
            return b""
        try:
            query = dns.message.from_wire(wire, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return b""
        if self._guard is not None:
            if (refusal := self._guard.refusal(client, query)) is not None:
                return refusal
            local = self._own(query, client)
            return None if local is None else self._guard.pass_on(client, local)
        return self._own(query, client)

    def _own(self, query: dns.message.Message, client: str) -> bytes | None:
        """The answer about a name of ours; None: it is none."""
        question = query.question[0]
        if (address := _reversed(question.name)) is not None:
            return self._whose(query, address)
        name = question.name.to_text(omit_final_dot=True).lower()
        if name != DOMAIN and not name.endswith("." + DOMAIN):
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        reply.flags |= dns.flags.AA
        known = self._names.get(name.removesuffix("." + DOMAIN))
        if name == HOST_NAME and self._guard is not None and self._guard.reaches_host(client):
            known = (HOST4, HOST6)
        if known is None:
            if name != DOMAIN:
                reply.set_rcode(dns.rcode.NXDOMAIN)
        else:
            kinds = {dns.rdatatype.A: known[0], dns.rdatatype.AAAA: known[1]}
            if (value := kinds.get(question.rdtype)) is not None:
                reply.answer.append(
                    dns.rrset.from_text(question.name, _TTL, "IN", question.rdtype, value)
                )
        return reply.to_wire()

    def _whose(self, query: dns.message.Message, address: str) -> bytes:
        """Which machine an address is."""
        reply = dns.message.make_response(query, recursion_available=True)
        reply.flags |= dns.flags.AA
        question = query.question[0]
        names = [name for name, addresses in self._names.items() if address in addresses]
        if not names:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype in {dns.rdatatype.PTR, dns.rdatatype.ANY}:
            target = f"{names[0]}.{DOMAIN}."
            reply.answer.append(dns.rrset.from_text(question.name, _TTL, "IN", "PTR", target))
        return reply.to_wire()

    # -- asking the world ----------------------------------------------------------------------

    def _forward(self, wire: bytes, reply_on: socket.socket, client: Any) -> None:
        if len(self._pending) >= _PENDING or self._asking[client[0]] >= _PENDING_EACH:
            return
        self._asking[client[0]] += 1
        (number,) = struct.unpack_from("!H", wire)
        # Each is asked twice, as the C library does: a datagram may be lost.
        left = self._resolvers.addresses() * 2
        self._ask(_Question(wire, number, reply_on, client, left))

    def _ask(self, question: _Question) -> None:
        while question.left:
            server = question.left.pop(0)
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            if not (socks := self._upstream.datagram.get(family)):
                continue
            sock = secrets.choice(socks)
            number = secrets.randbelow(1 << 16)
            if (sock, number) in self._pending:
                number = secrets.randbelow(1 << 16)
            try:
                sock.sendto(struct.pack("!H", number) + question.wire[2:], (server, 53))
            except OSError:
                continue  # no route to that one: the next
            question.asked = (server, 53)
            self._pending[sock, number] = question
            question.timer = self._loop.call_later(_PATIENCE, self._silent, sock, number)
            return
        self._done(question)
        self._fail(question)

    def _done(self, question: _Question) -> None:
        client = question.client[0]
        self._asking[client] -= 1
        if not self._asking[client]:
            del self._asking[client]

    def _silent(self, sock: socket.socket, number: int) -> None:
        if (question := self._pending.pop((sock, number), None)) is not None:
            self._ask(question)

    def _fail(self, question: _Question) -> None:
        """Nobody answers: say so, rather than let the machine wait."""
        with contextlib.suppress(dns.exception.DNSException, ValueError, OSError):
            query = dns.message.from_wire(question.wire, ignore_trailing=True)
            reply = dns.message.make_response(query)
            reply.set_rcode(dns.rcode.SERVFAIL)
            question.reply_on.sendto(reply.to_wire(), question.client)

    def _answered(self, sock: socket.socket) -> None:
        for _ in range(64):
            try:
                wire, server = sock.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about one of the questions: its timer asks the next
                continue
            if len(wire) < 12:  # noqa: PLR2004 (a header, RFC 1035)
                continue
            (number,) = struct.unpack_from("!H", wire)
            question = self._pending.get((sock, number))
            if question is None or question.asked != server[:2]:
                continue
            if not _same_question(question.wire, wire):
                continue
            del self._pending[sock, number]
            if question.timer is not None:
                question.timer.cancel()
            self._done(question)
            answer = struct.pack("!H", question.number) + wire[2:]
            if self._guard is not None:
                answer = self._guard.pass_on(question.client[0], answer)
            if answer:
                with contextlib.suppress(OSError):
                    question.reply_on.sendto(answer, question.client)

    # -- questions over TCP ----------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(16):
            try:
                client, address = listener.accept()
            except OSError:
                return
            if len(self._streams) >= _STREAMS or self._streaming[address[0]] >= _STREAMS_EACH:
                client.close()
                continue
            client.settimeout(0)
            self._streaming[address[0]] += 1
            task = self._loop.create_task(
                self._serve_stream(client, address[0]), name="names over TCP"
            )
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)

    async def _serve_stream(self, client: socket.socket, address: str) -> None:
        try:
            with client, contextlib.suppress(OSError, TimeoutError, EOFError):
                async with asyncio.timeout(_TCP_PATIENCE):
                    for _ in range(_QUESTIONS_EACH):
                        if not await self._serve_question(client, address):
                            break
                        # What is there already is read without a turn of the loop in between.
                        await asyncio.sleep(0)
        finally:
            self._streaming[address] -= 1
            if not self._streaming[address]:
                del self._streaming[address]

    async def _serve_question(self, client: socket.socket, address: str) -> bool:
        wire = await self._read_message(client)
        answer = self.local_answer(wire, address)
        if answer is None:
            answer = await self._over_tcp(wire)
            if answer and self._guard is not None:
                answer = self._guard.pass_on(address, answer)
        if answer:
            await self._loop.sock_sendall(client, struct.pack("!H", len(answer)) + answer)
        return bool(answer)

    async def _over_tcp(self, wire: bytes) -> bytes:
        for server in self._resolvers.addresses():
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            free = self._free.get(family)
            if not free:
                continue
            sock = free.pop()
            try:
                await self._loop.sock_connect(sock, (server, 53))
                await self._loop.sock_sendall(sock, struct.pack("!H", len(wire)) + wire)
                return await self._read_message(sock)
            except (OSError, EOFError):
                continue
            finally:
                # Connecting to nowhere ends the connection and keeps the socket (connect(2)): new
                # ones of the host's network cannot be made from in here.
                disconnect(sock)
                free.append(sock)
        return b""

    async def _read_message(self, sock: socket.socket) -> bytes:
        (length,) = struct.unpack("!H", await self._read(sock, 2))
        return await self._read(sock, length)

    async def _read(self, sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await self._loop.sock_recv(sock, count - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def _asks_once(wire: bytes) -> bool:
    """Whether a message is one question, by its header (RFC 1035, 4.1.1) and its size alone.

    EDNS is an additional record, and all that may come along: reading a thousand takes long.
    """
    if not _HEADER.size <= len(wire) <= _QUESTION_MOST:
        return False
    _, flags, questions, answers, authorities, additional = _HEADER.unpack_from(wire)
    answered = flags >> 15
    return (answered, questions, answers, authorities) == (0, 1, 0, 0) and additional <= _ADDITIONAL


def _reversed(name: dns.name.Name) -> str | None:
    """The machines' address that a name in `in-addr.arpa` or `ip6.arpa` stands for."""
    try:
        address = ipaddress.ip_address(dns.reversename.to_address(name))
    except (dns.exception.DNSException, ValueError):
        return None
    return str(address) if any(address in network for network in _OURS) else None


def _same_question(asked: bytes, answered: bytes) -> bool:
    """Whether the answer repeats the question, which a forged one does not know."""
    end = 12
    while end < len(asked) and asked[end]:
        end += asked[end] + 1
    end += 5  # the root, type and class
    return asked[12:end].lower() == answered[12:end].lower()


def disconnect(sock: socket.socket) -> None:
    """End a socket's connection, so that it can be connected anew."""
    import ctypes

    address = struct.pack("=H14x", socket.AF_UNSPEC)
    ctypes.CDLL(None).connect(sock.fileno(), address, len(address))
