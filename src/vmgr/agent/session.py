"""The agent protocol's host half: a state machine without I/O.

Bytes from the machine go in by `receive`, come out as events of `next_event`; methods that say
something to the agent leave bytes for `take_output`. The session begins by looking for the last
hello's nonce (whatever an earlier session left in the pipe comes before it), then takes frames::

    SEEKING --nonce--> GREETING --HELLO--> READY
       any --ProtocolViolation--> BROKEN

Channels::

    open() -> OPENING --OPENED--> OPEN --EXIT--> EXITED --close()--> (gone)
                 |                 |
               ERROR: gone       ERROR: gone; close(): gone, the job goes on

`abandon` is for a consumer that went away: the channel answers to nobody, grants itself credit and
closes itself once it can. Frames for channels that are gone are dropped: they may have been on
their way. Frames for channels that never were are violations, and so is everything else the agent
has no leave to send.

A request may be opened before the hello is there: the agent reads it right after ours.
"""

from __future__ import annotations

import os
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from vmgr.agent import messages as m
from vmgr.agent.events import (
    CreditReceived,
    DataReceived,
    EventReceived,
    Exited,
    FlowEnded,
    HelloReceived,
    Opened,
    Pong,
    RequestFailed,
    SessionEvent,
)
from vmgr.agent.flows import INITIAL_CREDIT, InFlow, OutFlow
from vmgr.agent.frames import (
    MAX_DATA,
    MAX_PAYLOAD,
    MAX_PING,
    STDERR,
    STDIN,
    STDOUT,
    Frame,
    FrameBuffer,
    FrameType,
    ProtocolViolation,
    encode_credit,
    encode_frame,
    encode_header,
)
from vmgr.agent.keys import KEY_SIZE
from vmgr.agent.patience import Patience
from vmgr.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "MAX_CHANNELS",
    "MAX_DISCARD",
    "VERSIONS",
    "Session",
]

VERSIONS: Final = (1,)
MAX_DISCARD: Final = 16 * 1024**2
"""Bytes of an earlier session that may come before the nonce."""
MAX_CHANNELS: Final = 512
_MAX_PINGS: Final = 64
# At once, and in each second for ever. An agent tells of listening ports 200 times a second, if
# somebody in its machine wants that, and is no liar. Frames that say nothing are as many as were on
# their way to channels that have been closed.
_EVENTS: Final = (2_000, 400)
_IDLE: Final = (50_000, 1_000)
_CHANNEL_MAX: Final = 2**32 - 1


class _Phase(Enum):
    SEEKING = auto()
    GREETING = auto()
    READY = auto()
    BROKEN = auto()


class _State(Enum):
    OPENING = auto()
    OPEN = auto()
    EXITED = auto()


class _Channel:
    """One channel as the host sees it."""

    __slots__ = (
        "abandoned", "hangup", "hung_up", "number", "request", "state", "stderr", "stdin", "stdout",
    )  # fmt: skip

    def __init__(self, number: int, request: m.Request) -> None:
        self.number = number
        self.request = request
        self.state = _State.OPENING
        self.abandoned = False
        self.hangup = False
        self.hung_up = False
        self.stdin = OutFlow()
        self.stdout = InFlow()
        self.stderr = InFlow()

    def output(self, flow: int) -> InFlow:
        if flow == STDOUT:
            return self.stdout
        if flow == STDERR:
            return self.stderr
        raise ProtocolViolation("the agent sent on stdin")


class Session:
    """One connection's protocol state. Not thread-safe; no method blocks."""

    def __init__(
        self, host_version: str, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._host_version = host_version
        self._random = random_bytes
        self._buffer = FrameBuffer()
        self._phase = _Phase.SEEKING
        self._nonce = b""
        self._key = b""
        self._discarded = 0
        self._channels: dict[int, _Channel] = {}
        self._last_channel = 0
        self._pings: list[bytes] = []
        self._out: list[bytes] = []
        self._events = Patience("events", *_EVENTS)
        self._idle = Patience("frames that say nothing", *_IDLE)

    # -- what goes out -----------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the agent's hello has come and the session still holds."""
        return self._phase is _Phase.READY

    def start(self, candidates: Sequence[bytes], final_key: bytes) -> None:
        """Write the chain of markers and hellos (see `vmgr.agent.keys`).

        Args:
            candidates: keys the agent may hold, oldest first.
            final_key: what it will hold after it; already stored.
        """
        self._key = final_key
        for key, following in zip(candidates, [*candidates[1:], final_key], strict=True):
            self._nonce = self._random(KEY_SIZE)
            hello = m.HostHello(
                versions=list(VERSIONS),
                nonce=self._nonce,
                host=self._host_version,
                next_key=following,
            )
            self._out += [key, encode_frame(FrameType.HELLO, m.encode(hello))]

    def take_output(self) -> list[bytes]:
        """All that is to be sent and was not taken yet, in order."""
        out, self._out = self._out, []
        return out

    def open(self, request: m.Request) -> int:
        """Send a request; gives its channel.

        Raises:
            UsageError: it does not fit into a frame.
            ResourceError: too many requests and jobs are under way.
        """
        payload = m.encode(request)
        if len(payload) > MAX_PAYLOAD:
            raise UsageError(
                f"the command, its arguments and environment take {len(payload)} bytes, "
                f"and at most {MAX_PAYLOAD} can be sent",
                next_step="pass long input on standard input or in a file",
            )
        if len(self._channels) >= MAX_CHANNELS or self._last_channel >= _CHANNEL_MAX:
            raise ResourceError(
                f"{len(self._channels)} commands are already under way in the machine",
                next_step="wait until some of them have ended",
            )
        self._last_channel = number = self._last_channel + 1
        self._channels[number] = _Channel(number, request)
        self._out.append(encode_frame(FrameType.OPEN, payload, channel=number))
        return number

    def stdin_room(self, channel: int) -> int:
        """Bytes of stdin that may be sent now; 0 when the channel takes none."""
        known = self._live(channel)
        return known.stdin.room if known else 0

    def send_data(self, channel: int, data: bytes) -> None:
        """Send stdin. What comes after the job's end is dropped, as a pipe without a reader would.

        Raises:
            CreditError: more than was granted, or after `send_eof`.
        """
        known = self._live(channel)
        if known is None:
            return
        known.stdin.send(len(data))
        for at in range(0, len(data), MAX_DATA):
            part = data[at : at + MAX_DATA]
            header = encode_header(FrameType.DATA, flow=STDIN, channel=channel, length=len(part))
            self._out += [header, part]
        if any(data.endswith(self._key[:n]) for n in range(1, KEY_SIZE)):
            # The agent holds it back as a possible marker until more comes; let that be now.
            self._out.append(encode_frame(FrameType.DATA, flow=STDIN, channel=channel))

    def send_eof(self, channel: int) -> None:
        """End stdin; a second time does nothing."""
        known = self._live(channel)
        if known is not None and not known.stdin.ended:
            known.stdin.ended = True
            self._out.append(encode_frame(FrameType.EOF, flow=STDIN, channel=channel))

    def grant(self, channel: int, flow: int, acked: int, limit: int) -> None:
        """Acknowledge output and leave room for more (absolute offsets in bytes).

        Raises:
            CreditError: the offsets break the rules of credit, or the flow is no output.
        """
        known = self._channels.get(channel)
        if flow not in {STDOUT, STDERR}:
            raise UsageError(f"credit for flow {flow}, which is no output")
        if known is None or known.abandoned or known.state is _State.OPENING:
            return
        known.output(flow).grant(acked, limit)
        if known.state is _State.OPEN:
            self._out.append(encode_credit(channel, flow, acked, limit))

    def control(self, channel: int, message: m.Control) -> None:
        """Send CONTROL; nothing happens when the job has ended."""
        if self._live(channel) is not None:
            self._out.append(encode_frame(FrameType.CONTROL, m.encode(message), channel=channel))

    def close(self, channel: int) -> None:
        """Forget the channel. Before EXIT the job goes on, detached; after it, its record goes."""
        known = self._channels.get(channel)
        if known is None or known.abandoned:
            return
        if known.state is _State.OPENING:
            self.abandon(channel, hangup=False)
            return
        self._close(known)

    def abandon(self, channel: int, *, hangup: bool) -> None:
        """The consumer has gone without waiting for the end.

        Args:
            channel: what `open` gave.
            hangup: end the job (also one that is only being started); else it goes on, detached.
        """
        known = self._channels.get(channel)
        if known is None or known.abandoned:
            return
        known.abandoned = True
        known.hangup = hangup
        if known.state is not _State.OPENING:
            self._settle(known)

    def ping(self, payload: bytes) -> None:
        """Send PING; answers come in order.

        Raises:
            ResourceError: the agent owes too many already.
        """
        if len(payload) > MAX_PING:
            raise UsageError(f"a ping of {len(payload)} bytes, above {MAX_PING}")
        if len(self._pings) >= _MAX_PINGS:
            raise ResourceError("the machine's agent does not answer pings")
        self._pings.append(payload)
        self._out.append(encode_frame(FrameType.PING, payload))

    # -- what comes in -----------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from the machine; then call `next_event` until it gives None."""
        if self._phase is not _Phase.BROKEN:
            self._buffer.feed(data)

    def next_event(self) -> SessionEvent | None:
        """The next thing that happened, or None until more bytes come.

        Raises:
            ProtocolViolation: the session is over; nothing more will come of it.
        """
        try:
            if self._phase is _Phase.SEEKING and not self._found_nonce():
                return None
            while self._phase is not _Phase.BROKEN:
                frame = self._buffer.next()
                if frame is None:
                    return None
                event = self._handle(frame)
                if event is not None:
                    return event
        except ProtocolViolation:
            self._phase = _Phase.BROKEN
            self._buffer.clear()
            self._channels.clear()
            raise
        return None

    def _found_nonce(self) -> bool:
        before = len(self._buffer)
        skipped = self._buffer.discard_through(self._nonce) if self._nonce else None
        if skipped is None:
            self._discarded += before - len(self._buffer)
        else:
            self._discarded += skipped
            self._phase = _Phase.GREETING
        if self._discarded > MAX_DISCARD:
            raise ProtocolViolation(f"no answer to the hello within {MAX_DISCARD} bytes")
        return skipped is not None

    def _handle(self, frame: Frame) -> SessionEvent | None:
        kind = frame.type
        if self._phase is _Phase.GREETING:
            if kind is not FrameType.HELLO:
                raise ProtocolViolation(f"{kind.name} where its hello was due")
            return self._hello(frame)
        if frame.channel:
            return self._on_channel(frame)
        if kind is FrameType.EVENT:
            self._events.spend()
            return EventReceived(m.decode(frame.payload, m.AgentEvent))
        if kind is FrameType.PONG:
            if not self._pings or self._pings.pop(0) != frame.payload:
                raise ProtocolViolation("an answer to no ping")
            return Pong(frame.payload)
        raise ProtocolViolation(f"an unexpected {kind.name}")

    def _hello(self, frame: Frame) -> HelloReceived:
        hello = m.decode(frame.payload, m.AgentHello)
        if hello.version not in (0, *VERSIONS):
            raise ProtocolViolation(f"it chose version {hello.version}, which was not offered")
        self._phase = _Phase.READY
        return HelloReceived(hello)

    def _on_channel(self, frame: Frame) -> SessionEvent | None:
        known = self._channels.get(frame.channel)
        if known is None:
            if frame.channel > self._last_channel:
                raise ProtocolViolation(f"{frame.type.name} on a channel that was never opened")
            self._idle.spend()
            return None
        if frame.type is FrameType.ERROR:
            failure = m.decode(frame.payload, m.Failure)
            if known.state is _State.EXITED:
                raise ProtocolViolation("ERROR after EXIT")
            del self._channels[frame.channel]
            return None if known.abandoned else RequestFailed(frame.channel, failure)
        if frame.type is FrameType.OPENED:
            return self._opened(known, frame)
        if known.state is not _State.OPEN:
            raise ProtocolViolation(f"{frame.type.name} on a channel that is {known.state.name}")
        event = self._stream_event(known, frame)
        if known.abandoned:
            self._settle(known)
            return None
        return event

    def _opened(self, known: _Channel, frame: Frame) -> SessionEvent | None:
        if known.state is not _State.OPENING:
            raise ProtocolViolation("OPENED twice")
        request = known.request
        reply = m.decode(frame.payload, request.reply)
        if not request.stream:
            del self._channels[known.number]
            return None if known.abandoned else Opened(known.number, reply)
        known.state = _State.OPEN
        if isinstance(request, m.Attach) and isinstance(reply, m.Attached):
            if (
                reply.stdout_from < request.stdout_received
                or reply.stderr_from < request.stderr_received
            ):
                raise ProtocolViolation("it went back in a flow that was asked for from later on")
            known.stdin = OutFlow(reply.stdin_received)
            known.stdout = InFlow(reply.stdout_from)
            known.stderr = InFlow(reply.stderr_from)
        if known.abandoned:
            self._settle(known)
            return None
        return Opened(known.number, reply)

    def _stream_event(self, known: _Channel, frame: Frame) -> SessionEvent:
        number, flow = known.number, frame.flow
        if frame.type is FrameType.DATA:
            if not frame.payload:
                self._idle.spend()
            known.output(flow).take(len(frame.payload))
            return DataReceived(number, flow, frame.payload)
        if frame.type is FrameType.EOF:
            known.output(flow).end()
            return FlowEnded(number, flow)
        if frame.type is FrameType.CREDIT:
            if flow != STDIN:
                raise ProtocolViolation("credit for a flow that the agent sends itself")
            acked, limit = frame.credit
            if (acked, limit) == (known.stdin.acked, known.stdin.limit):
                self._idle.spend()
            known.stdin.credited(acked, limit)
            return CreditReceived(number, acked, limit)
        if frame.type is FrameType.EXIT:
            result = m.decode(frame.payload, m.JobExit)
            known.state = _State.EXITED
            return Exited(number, result)
        raise ProtocolViolation(f"an unexpected {frame.type.name}")

    # -- inside ------------------------------------------------------------------------------------

    def _live(self, channel: int) -> _Channel | None:
        """The channel, if its job can still be told something."""
        known = self._channels.get(channel)
        if known is None or known.abandoned or known.state is not _State.OPEN:
            return None
        return known

    def _close(self, known: _Channel) -> None:
        del self._channels[known.number]
        self._out.append(encode_frame(FrameType.CLOSE, channel=known.number))

    def _settle(self, known: _Channel) -> None:
        """Do what an abandoned channel still needs."""
        if known.state is _State.EXITED or not known.hangup:
            self._close(known)
            return
        if not known.hung_up:
            known.hung_up = True
            hangup = m.encode({"hangup": True})
            self._out.append(encode_frame(FrameType.CONTROL, hangup, channel=known.number))
        # Nobody reads, but EXIT comes only behind the output.
        for flow, window in ((STDOUT, known.stdout), (STDERR, known.stderr)):
            if not window.ended and window.limit - window.received < INITIAL_CREDIT // 2:
                window.grant(window.received, window.received + INITIAL_CREDIT)
                self._out.append(encode_credit(known.number, flow, window.acked, window.limit))
