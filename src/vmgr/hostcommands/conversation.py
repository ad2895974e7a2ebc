"""What is said with the `host` program in a machine: a state machine without I/O.

The frames of the agent protocol on channel 1, with the parts exchanged (docs/agent-protocol.md,
"Calls")::

    WAITING --OPEN--> ASKED --started()--> RUNNING --exited()--> OVER
                        |                     |
                     failed(): OVER        failed(): OVER

Bytes from the machine go in by `receive` and come out as events; what is to be sent is left for
`take_output`. All of it is hostile: each length is checked before anything is kept for it, and what
the protocol has no leave for ends the conversation.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from vmgr.agent.flows import OUTPUT_WINDOW, InFlow, OutFlow
from vmgr.agent.frames import (
    MAX_DATA,
    STDERR,
    STDIN,
    STDOUT,
    Frame,
    FrameBuffer,
    FrameType,
    ProtocolViolation,
    encode_credit,
    encode_frame,
)
from vmgr.agent.shape import check_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CHANNEL",
    "Asked",
    "Conversation",
    "Credit",
    "Event",
    "Input",
    "InputEnded",
    "Resized",
    "Signalled",
    "Size",
]

CHANNEL: Final = 1
_MAX_ARGUMENTS: Final = 1_024
_SIGNALS: Final = frozenset({1, 2, 3, 10, 12, 15})  # HUP, INT, QUIT, USR1, USR2, TERM
_IDLE: Final = 1_000
"""Frames in one conversation that change nothing."""

Cells = Annotated[int, Meta(ge=1, le=1_000)]
Path = Annotated[bytes, Meta(max_length=4_096)]


class Size(Struct, frozen=True, kw_only=True):
    """Of a terminal, in character cells."""

    rows: Cells
    cols: Cells


class Asked(Struct, frozen=True, kw_only=True):
    """OPEN: what the machine wants."""

    verb: Literal["run", "open", "notify", "copy", "paste"]
    argv: Annotated[list[bytes], Meta(max_length=_MAX_ARGUMENTS)]
    cwd: Path | None = None
    tty: Size | None = None
    term: Annotated[str, Meta(max_length=64)] = ""

    def __post_init__(self) -> None:
        if any(b"\0" in text for text in [*self.argv, self.cwd or b""]):
            raise ValueError("a NUL in an argument")
        needs = self.verb in {"run", "open", "notify"}
        if needs is not bool(self.argv) or (self.verb == "run" and not self.argv[0]):
            raise ValueError("the wrong number of arguments")


class _Control(Struct, frozen=True, kw_only=True):
    signal: int | None = None
    resize: Size | None = None


class Input(Struct, frozen=True):
    """Bytes of its stdin."""

    data: bytes


class InputEnded(Struct, frozen=True):
    """Its stdin has ended."""


class Credit(Struct, frozen=True):
    """There may be more room for output."""


class Signalled(Struct, frozen=True):
    """A signal for the command."""

    number: int


class Resized(Struct, frozen=True):
    """Its terminal has a new size."""

    size: Size


_T = TypeVar("_T")
Event = Asked | Input | InputEnded | Credit | Signalled | Resized
_asked: Final = msgspec.msgpack.Decoder(Asked)
_control: Final = msgspec.msgpack.Decoder(_Control)
_encode: Final = msgspec.msgpack.encode


class _State(Enum):
    WAITING = auto()
    ASKED = auto()
    RUNNING = auto()
    OVER = auto()


class Conversation:
    """One `host` program in a machine."""

    def __init__(self) -> None:
        self._state = _State.WAITING
        self._frames = FrameBuffer()
        self._out: list[bytes] = []
        self._input = InFlow()
        self._outputs = {STDOUT: OutFlow(), STDERR: OutFlow()}
        self._idle = 0

    @property
    def over(self) -> bool:
        """Whether the last word has been said."""
        return self._state is _State.OVER

    def receive(self, data: bytes) -> Iterator[Event]:
        """Bytes of the machine's; what they mean.

        Raises:
            ProtocolViolation: what may not be said; then the conversation is over.
        """
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                if (event := self._event(frame)) is not None:
                    yield event
        except ProtocolViolation:
            self._state = _State.OVER
            raise

    def take_output(self) -> bytes:
        """What is to be sent."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    # -- the host's words ------------------------------------------------------------------------

    def started(self) -> None:
        """What was asked is allowed, and runs."""
        assert self._state is _State.ASKED  # noqa: S101 (the caller's own order)
        self._state = _State.RUNNING
        self._say(FrameType.OPENED, _encode({}))

    def room(self, flow: int) -> int:
        """Bytes of output that may be sent now."""
        return min(self._outputs[flow].room, MAX_DATA)

    def send(self, flow: int, data: bytes) -> None:
        """Output, at most `room`."""
        self._outputs[flow].send(len(data))
        self._say(FrameType.DATA, data, flow=flow)

    def took(self, acked: int) -> None:
        """The command has taken its stdin before that offset."""
        if not self._input.ended and acked + OUTPUT_WINDOW // 2 > self._input.limit:
            self._input.grant(acked, acked + OUTPUT_WINDOW)
            self._out.append(encode_credit(CHANNEL, STDIN, acked, acked + OUTPUT_WINDOW))

    def exited(self, *, code: int | None = None, signal: int | None = None) -> None:
        """The command has ended: the last word."""
        result = {"signal": signal} if signal is not None else {"code": (code or 0) & 255}
        self._say(FrameType.EXIT, _encode(result))
        self._state = _State.OVER

    def failed(self, code: str, message: str) -> None:
        """It is refused or could not be started: the last word."""
        if not self.over:
            self._say(FrameType.ERROR, _encode({"code": code, "message": message[:4_000]}))
            self._state = _State.OVER

    # -- inside ----------------------------------------------------------------------------------

    def _say(self, kind: FrameType, payload: bytes = b"", *, flow: int = 0) -> None:
        self._out.append(encode_frame(kind, payload, channel=CHANNEL, flow=flow))

    def _event(self, frame: Frame) -> Event | None:
        if self.over:
            return None  # it was on its way
        if frame.channel != CHANNEL:
            raise ProtocolViolation(f"{frame.type.name} on channel {frame.channel}")
        if self._state is _State.WAITING:
            if frame.type is not FrameType.OPEN:
                raise ProtocolViolation(f"{frame.type.name} before OPEN")
            self._state = _State.ASKED
            return _decode(_asked, frame.payload)
        return self._while_it_runs(frame)

    def _while_it_runs(self, frame: Frame) -> Event | None:
        match frame.type:
            case FrameType.DATA if frame.flow == STDIN:
                if not frame.payload:
                    self._spend()
                self._input.take(len(frame.payload))
                return Input(frame.payload)
            case FrameType.EOF if frame.flow == STDIN:
                self._input.end()
                return InputEnded()
            case FrameType.CREDIT if frame.flow in self._outputs:
                flow = self._outputs[frame.flow]
                if frame.credit == (flow.acked, flow.limit):
                    self._spend()
                flow.credited(*frame.credit)
                return Credit()
            case FrameType.CONTROL:
                return self._controlled(_decode(_control, frame.payload))
            case _:
                raise ProtocolViolation(f"an unexpected {frame.type.name}")

    def _controlled(self, control: _Control) -> Event | None:
        self._spend()
        if control.resize is not None:
            return Resized(control.resize)
        if control.signal is None:
            return None
        if control.signal not in _SIGNALS:
            raise ProtocolViolation(f"the signal {control.signal}")
        return Signalled(control.signal)

    def _spend(self) -> None:
        self._idle += 1
        if self._idle > _IDLE:
            raise ProtocolViolation("too many frames that say nothing")


def _decode(decoder: msgspec.msgpack.Decoder[_T], payload: bytes) -> _T:
    check_shape(payload)
    try:
        return decoder.decode(payload)
    # UnicodeDecodeError (a ValueError) comes from text that is not UTF-8.
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolViolation(f"a bad message ({error})") from None
