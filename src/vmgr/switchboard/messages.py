"""What helper and switchboard say to each other: one msgpack map per packet, fds beside it.

The socket is of the kind SOCK_SEQPACKET, so a packet is a message. The helper's requests carry a
number, the answer repeats it; what the switchboard says by itself has the number 0.
"""

from __future__ import annotations

import socket
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

__all__ = [
    "MAX_FDS",
    "MAX_PACKET",
    "VERSION",
    "Answer",
    "Event",
    "Forward",
    "Hello",
    "Host",
    "Listen",
    "Outward",
    "Plug",
    "Plugs",
    "Quit",
    "Rule",
    "Unlisten",
    "Unplug",
    "decode",
    "encode",
    "receive",
    "send",
]

VERSION: Final = 4
MAX_PACKET: Final = 131_072
MAX_FDS: Final = 64

Access = Literal["full", "internet", "none"]


class Request(Struct, frozen=True, kw_only=True, tag_field="op"):
    """Base of what the helper asks."""

    number: int = 0


class Hello(Request, frozen=True, kw_only=True, tag="hello"):
    """Which machines is somebody connected to, or else: what is forwarded to one of them?

    Not to all of them: that many do not fit an answer.
    """

    machine: str | None = None
    """Its id, where its forwarded ports are asked for."""


class Rule(Struct, frozen=True, kw_only=True):
    """What a machine may reach: a domain's addresses or a network, all of it or a port."""

    domain: str | None = None
    """In lower case, as DNS writes it; `*.example.org` is what is below example.org."""
    network: str | None = None
    protocol: Literal["tcp", "udp"] | None = None
    port: int | None = None
    """With `protocol`, or neither is there."""


class Plug(Request, frozen=True, kw_only=True, tag="plug"):
    """Make a tap for a machine; the answer has its `interface` and, as fd, its other end.

    What the machine had before goes, unless it is named: then there is no fd.
    """

    machine: str
    """Its id."""
    name: str
    mac: bytes
    address4: str
    address6: str
    access: Access
    interface: str | None = None
    """A tap that the machine holds already, from an earlier switchboard; None: a new one."""
    rules: list[Rule] | None = None
    """All that it may reach, within `access`; None: all that `access` permits."""
    host_ports: list[int] = []
    """TCP ports of this computer's loopback that it may reach."""
    host_udp_ports: list[int] = []


class Unplug(Request, frozen=True, kw_only=True, tag="unplug"):
    """A machine has ended: its tap, rules, name and forwarded ports go."""

    machine: str


class Forward(Struct, frozen=True, kw_only=True):
    """A port of this computer that leads to one of a machine."""

    machine: str
    protocol: Literal["tcp", "udp"]
    host: str
    """The address that is listened on."""
    host_port: int
    target: str
    """The address in the namespace that it leads to."""
    target_port: int


class Listen(Request, frozen=True, kw_only=True, tag="listen"):
    """Serve a forwarded port; its socket comes with the message, bound (and listening)."""

    forward: Forward


class Unlisten(Request, frozen=True, kw_only=True, tag="unlisten"):
    """Stop serving a port; connections that are open go on."""

    forward: Forward


class Host(Request, frozen=True, kw_only=True, tag="host"):
    """What this computer is now, as far as it is named; with fds: sockets of its network.

    Whoever may not reach this computer may not reach its addresses.
    """

    addresses: list[str] | None = None
    resolvers: list[str] | None = None


class Outward(Request, frozen=True, kw_only=True, tag="outward"):
    """There is a new egress process: give its interface what it lacks."""


class Quit(Request, frozen=True, kw_only=True, tag="quit"):
    """End."""


class Answer(Struct, frozen=True, kw_only=True):
    """The answer to a request. `error` is a sentence."""

    number: int
    error: str | None = None
    result: dict[str, Any] = {}


class Plugs(Struct, frozen=True, kw_only=True):
    """Answer to `Hello`."""

    version: int
    forwards: list[Forward] = []
    connected: list[str] = []
    """The machines that somebody is connected to by a forwarded TCP port."""


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened in the namespace."""

    number: int = 0
    event: str
    machine: str = ""
    data: dict[str, Any] = {}


Asked = Hello | Plug | Unplug | Listen | Unlisten | Host | Outward | Quit

_encoder: Final = msgspec.msgpack.Encoder()
_requests: Final = msgspec.msgpack.Decoder(Asked)
T = TypeVar("T", bound=Struct)


def encode(message: Struct) -> bytes:
    """Write a message."""
    return _encoder.encode(message)


def decode(packet: bytes) -> Asked:
    """Read a request.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    request: Asked = _requests.decode(packet)
    return request


def send(sock: socket.socket, message: Struct, fds: tuple[int, ...] = ()) -> None:
    """Send one message, with fds.

    Raises:
        OSError: the other side has gone, or does not read.
    """
    packet = encode(message)
    if fds:
        socket.send_fds(sock, [packet], list(fds))
    else:
        sock.send(packet)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Take one packet and its fds; empty at the end.

    Raises:
        BlockingIOError: there is none.
        OSError: the connection broke.
    """
    packet, fds, flags, _ = socket.recv_fds(sock, MAX_PACKET, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            socket.close(fd)
        raise OSError("a packet that is too large")
    return packet, fds
