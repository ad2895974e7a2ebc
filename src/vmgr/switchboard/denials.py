"""What the rules denied, as the kernel tells it (NFLOG): address, protocol, port."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from vmgr.switchboard.firewall import DENIED_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Denials", "describe"]

_NETLINK_NETFILTER: Final = 12
_ULOG: Final = 4 << 8  # NFNL_SUBSYS_ULOG
_CONFIG: Final = _ULOG | 1
_PACKET: Final = _ULOG | 0
_PAYLOAD, _INDEV = 9, 4  # NFULA_PAYLOAD, NFULA_IFINDEX_INDEV, linux/netfilter/nfnetlink_log.h
_REQUEST_ACK: Final = 5
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_TURNS: Final = 64


class Denials:
    """Listens to the kernel.

    Args:
        on_denied: called with the interface that a packet came in by, and what it was.

    Raises:
        OSError: this kernel cannot tell.
    """

    def __init__(self, on_denied: Callable[[str, dict[str, Any]], None]) -> None:
        self._on_denied = on_denied
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        try:
            self._sock.bind((0, 0))
            self._configure(1, struct.pack("!B3x", 1))  # NFULA_CFG_CMD: bind
            self._configure(2, struct.pack("!IBx", 80, 2))  # NFULA_CFG_MODE: the packets' beginning
            self._configure(4, struct.pack("!I", 5))  # NFULA_CFG_TIMEOUT: told within 50 ms
            self._sock.settimeout(0)
        except BaseException:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock, self._read)

    def close(self) -> None:
        """End it."""
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _configure(self, kind: int, value: bytes) -> None:
        attribute = struct.pack("=HH", 4 + len(value), kind) + value
        attribute += b"\0" * (-len(attribute) % 4)
        body = struct.pack("=BB", 0, 0) + struct.pack("!H", DENIED_GROUP) + attribute
        self._sock.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, _REQUEST_ACK, 0, 0) + body)
        answer = self._sock.recv(4096)
        (code,) = struct.unpack_from("=i", answer, 16)
        if code:
            raise OSError(-code, os.strerror(-code))

    def _read(self) -> None:
        for _ in range(_TURNS):
            try:
                data = self._sock.recv(65_536)
            except OSError:  # none, or some were lost
                return
            for kind, content in _parts(data, "=IH10x", 16):
                if kind == _PACKET:
                    self._packet(content[4:])

    def _packet(self, content: bytes) -> None:
        found = {kind & 0x3FFF: value for kind, value in _parts(content, "=HH", 4)}
        if _PAYLOAD not in found or len(found.get(_INDEV, b"")) < 4:  # noqa: PLR2004 (an index)
            return
        (index,) = struct.unpack_from("!I", found[_INDEV])
        try:
            interface = socket.if_indextoname(index)
        except OSError:
            return  # it has gone meanwhile
        if (denied := describe(found[_PAYLOAD])) is not None:
            self._on_denied(interface, denied)


def _parts(data: bytes, header: str, size: int) -> list[tuple[int, bytes]]:
    """What netlink's lengths divide `data` into: kind and content."""
    found = []
    while len(data) >= size:
        length, kind = struct.unpack_from(header, data)[:2]
        if not size <= length <= len(data):
            break
        found.append((kind, data[size:length]))
        data = data[(length + 3) & ~3 :]
    return found


def describe(packet: bytes) -> dict[str, Any] | None:
    """The destination of an IP packet, of which only the beginning is there; None: unreadable."""
    if len(packet) < 20:  # noqa: PLR2004 (the shortest header)
        return None
    version = packet[0] >> 4
    if version == 4:  # noqa: PLR2004
        protocol, address = packet[9], str(ipaddress.IPv4Address(packet[16:20]))
        rest = packet[(packet[0] & 15) * 4 :]
    elif version == 6 and len(packet) >= 40:  # noqa: PLR2004
        protocol, address = packet[6], str(ipaddress.IPv6Address(packet[24:40]))
        rest = packet[40:]
    else:
        return None
    port = None
    if protocol in {6, 17} and len(rest) >= 4:  # noqa: PLR2004
        (port,) = struct.unpack_from("!H", rest, 2)
    return {"address": address, "protocol": _PROTOCOLS.get(protocol, str(protocol)), "port": port}
