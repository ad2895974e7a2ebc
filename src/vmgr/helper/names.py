"""Names of machines for this computer: `NAME.vmgr.internal` is the machine's loopback address.

A small DNS server on the loopback device, on a port that needs no rights. The system's resolver is
told to ask it for this one domain (`vmgr doctor` shows how), so it answers nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Names"]

_TTL: Final = 5
_LARGEST: Final = 4_096
_STREAMS: Final = 16
_PENDING: Final = 64
_PATIENCE: Final = 5.0

log = logging.getLogger(__name__)


class Names:
    """The server.

    Args:
        domain: what it answers for.
        lookup: a machine's address by its name; None: there is none.
    """

    def __init__(self, domain: str, lookup: Callable[[str], str | None]) -> None:
        self._domain = domain
        self._lookup = lookup
        self._datagrams: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._streams = 0
        self._replies: set[asyncio.Task[None]] = set()
        self._loaded = False
        self.problem: str | None = None
        """Why nobody is answered."""

    async def open(self, address: str, port: int) -> None:
        """Begin to answer; where the port is taken `problem` says so.

        Not a failure: machines work without names on this computer.
        """
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((address, port))
            self._server = await asyncio.start_server(self._stream, address, port)
        except OSError as error:
            sock.close()
            self.problem = f"{address}:{port} cannot be had: {error.strerror}"
            log.warning("names are not answered: %s", self.problem)
            return
        self._datagrams = sock
        loop.add_reader(sock, self._asked, sock)

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it answers datagrams."""
        return self._datagrams.getsockname() if self._datagrams is not None else None

    @property
    def stream_address(self) -> tuple[str, int] | None:
        """Where it answers over TCP: the same, unless the kernel chose the numbers."""
        return self._server.sockets[0].getsockname() if self._server is not None else None

    async def close(self) -> None:
        """End it."""
        if self._datagrams is not None:
            asyncio.get_running_loop().remove_reader(self._datagrams)
            self._datagrams.close()
            self._datagrams = None
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._replies):
            task.cancel()

    async def _load(self) -> None:
        """Most people never ask, and importing the library holds the loop for long."""
        if not self._loaded:
            await asyncio.to_thread(_import)
            self._loaded = True

    def _asked(self, sock: socket.socket) -> None:
        for _ in range(32):
            try:
                wire, client = sock.recvfrom(_LARGEST)
            except OSError:
                return
            if len(self._replies) < _PENDING:  # more are not answered, and asked again
                task = asyncio.get_running_loop().create_task(self._reply(sock, wire, client))
                self._replies.add(task)
                task.add_done_callback(self._replies.discard)

    async def _reply(self, sock: socket.socket, wire: bytes, client: Any) -> None:
        await self._load()
        if reply := self.answer(wire):
            with contextlib.suppress(OSError):
                sock.sendto(reply, client)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams += 1
        try:
            if self._streams <= _STREAMS:
                await self._load()
                async with asyncio.timeout(_PATIENCE):
                    while True:
                        (length,) = struct.unpack("!H", await reader.readexactly(2))
                        reply = self.answer(await reader.readexactly(length))
                        if not reply:
                            return
                        writer.write(struct.pack("!H", len(reply)) + reply)
                        await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            self._streams -= 1
            writer.close()

    def answer(self, wire: bytes) -> bytes:
        """The answer to a question; empty for what is none."""
        import dns.exception
        import dns.flags
        import dns.message
        import dns.rcode
        import dns.rdatatype
        import dns.rrset

        try:
            query = dns.message.from_wire(wire, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return b""
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return b""
        question = query.question[0]
        reply = dns.message.make_response(query)
        name = question.name.to_text(omit_final_dot=True).lower()
        below = name.removesuffix("." + self._domain)
        if name != self._domain and below == name:
            reply.set_rcode(dns.rcode.REFUSED)
            return reply.to_wire()
        reply.flags |= dns.flags.AA
        # What stands before a machine's name is its own affair: api.web is web.
        address = None if name == self._domain else self._lookup(below.rpartition(".")[2])
        if address is not None and question.rdtype == dns.rdatatype.A:
            reply.answer.append(dns.rrset.from_text(question.name, _TTL, "IN", "A", address))
        elif address is None and name != self._domain:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply.to_wire()


def _import() -> None:
    for module in ("exception", "flags", "message", "rcode", "rdatatype", "rrset"):
        importlib.import_module(f"dns.{module}")
    # Reading the kinds of record that a question may hold imports more.
    dns = importlib.import_module("dns.message")
    dns.from_wire(dns.make_query("a.", "A", use_edns=True).to_wire())
