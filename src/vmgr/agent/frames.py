"""Frames: the unit of the agent protocol.

A frame is a 12-byte header and its payload, as docs/agent-protocol.md ("Frames") lays out. What
comes from the machine is hostile: every header is checked before the buffer waits for its payload,
so it never holds more than one frame beyond what was fed to it at once.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

__all__ = [
    "HEADER_SIZE",
    "MAX_DATA",
    "MAX_PAYLOAD",
    "MAX_PING",
    "STDERR",
    "STDIN",
    "STDOUT",
    "Frame",
    "FrameBuffer",
    "FrameType",
    "ProtocolViolation",
    "encode_credit",
    "encode_frame",
    "encode_header",
]

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

MAX_PAYLOAD: Final = 65_536
"""Bytes of payload in any frame."""
MAX_DATA: Final = 32_768
"""Bytes of payload in a DATA frame, so that one stream cannot hold the line for long."""
MAX_PING: Final = 64

_HEADER: Final = Struct("<IBBHI")
_CREDIT: Final = Struct("<QQ")
HEADER_SIZE: Final = _HEADER.size


class ProtocolViolation(Exception):  # noqa: N818 (the protocol page's own word for it)
    """The other side did what the protocol forbids; the session is over.

    Never shown to people as it is: the channel makes an `AgentError` of it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FrameType(IntEnum):
    """The second column of the protocol page's table."""

    HELLO = 1
    OPEN = 2
    OPENED = 3
    ERROR = 4
    DATA = 5
    EOF = 6
    CREDIT = 7
    CONTROL = 8
    EXIT = 9
    CLOSE = 10
    EVENT = 11
    PING = 12
    PONG = 13


_TYPES: Final = {int(t): t for t in FrameType}
_WITH_FLOW: Final = frozenset({FrameType.DATA, FrameType.EOF, FrameType.CREDIT})
_CONNECTION: Final = frozenset({FrameType.HELLO, FrameType.EVENT, FrameType.PING, FrameType.PONG})
_LARGEST: Final = {
    FrameType.DATA: MAX_DATA,
    FrameType.EOF: 0,
    FrameType.CREDIT: _CREDIT.size,
    FrameType.CLOSE: 0,
    FrameType.PING: MAX_PING,
    FrameType.PONG: MAX_PING,
}


class Frame(NamedTuple):
    """One decoded frame."""

    type: FrameType
    flow: int
    channel: int
    payload: bytes

    @property
    def credit(self) -> tuple[int, int]:
        """`(acked, limit)` of a CREDIT frame."""
        acked, limit = _CREDIT.unpack(self.payload)
        return acked, limit


def encode_header(kind: FrameType, *, channel: int, length: int, flow: int = 0) -> bytes:
    """The header of a frame whose payload of `length` bytes is sent after it."""
    return _HEADER.pack(length, kind, flow, 0, channel)


def encode_frame(
    kind: FrameType, payload: bytes = b"", *, channel: int = 0, flow: int = 0
) -> bytes:
    """A whole frame."""
    return _HEADER.pack(len(payload), kind, flow, 0, channel) + payload


def encode_credit(channel: int, flow: int, acked: int, limit: int) -> bytes:
    """A CREDIT frame: absolute offsets of `flow`, in bytes."""
    payload = _CREDIT.pack(acked, limit)
    return encode_frame(FrameType.CREDIT, payload, channel=channel, flow=flow)


class FrameBuffer:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._data += data

    def clear(self) -> None:
        """Forget all bytes."""
        self._data.clear()

    def discard_through(self, marker: bytes) -> int | None:
        """Drop everything up to and with `marker`; give the bytes dropped before it.

        None when it is not there: then all is dropped but what could be its beginning, and the
        caller learns how much from the change of `len`.
        """
        at = self._data.find(marker)
        if at < 0:
            del self._data[: max(0, len(self._data) - len(marker) + 1)]
            return None
        del self._data[: at + len(marker)]
        return at

    def next(self) -> Frame | None:
        """Take the next frame, or None when it is not all there.

        Raises:
            ProtocolViolation: the header cannot be true. The buffer is of no further use.
        """
        data = self._data
        if len(data) < HEADER_SIZE:
            return None
        length, number, flow, reserved, channel = _HEADER.unpack_from(data)
        kind = _TYPES.get(number)
        if length > MAX_PAYLOAD:
            raise ProtocolViolation(f"a frame of {length} bytes, above {MAX_PAYLOAD}")
        if kind is None:
            raise ProtocolViolation(f"a frame of the unknown type {number}")
        if reserved:
            raise ProtocolViolation("a frame whose reserved bytes are not zero")
        if flow and (flow > STDERR or kind not in _WITH_FLOW):
            raise ProtocolViolation(f"{kind.name} on flow {flow}")
        if (channel == 0) is not (kind in _CONNECTION):
            raise ProtocolViolation(f"{kind.name} on channel {channel}")
        if length > _LARGEST.get(kind, MAX_PAYLOAD):
            raise ProtocolViolation(f"{kind.name} of {length} bytes")
        if kind is FrameType.CREDIT and length != _CREDIT.size:
            raise ProtocolViolation(f"CREDIT of {length} bytes")
        end = HEADER_SIZE + length
        if len(data) < end:
            return None
        payload = bytes(memoryview(data)[HEADER_SIZE:end]) if length else b""
        # Cheap: a bytearray forgets its beginning by moving a pointer.
        del data[:end]
        return Frame(kind, flow, channel, payload)
