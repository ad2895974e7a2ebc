"""The streams of one command as its client keeps them, without I/O.

A command outlives connections: the helper may be killed and replaced while it runs. So this object,
not a connection, knows how far each flow has come.

- *Output* is counted when it arrives and again when the caller has taken it (written it out for
  good). Only taken bytes are acknowledged, so credit reaches from the person's terminal to the
  program.
- *Input* is kept until the helper has acknowledged it, at most `STDIN_WINDOW` bytes.

When a connection is lost after `Started`, a new one begins with `Attach` and these offsets, input
that never arrived is sent again, and output goes on where it stopped: nothing is lost or doubled.
Before `Started` nobody can know whether the command runs, so there is nothing to attach to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from vmgr.api import streams as s
from vmgr.client.core import error_of
from vmgr.errors import AgentError, HelperUnavailableError

if TYPE_CHECKING:
    from vmgr.api.models import ExitResult

__all__ = ["Gap", "JobEvent", "JobStream", "Output"]

# Acknowledge when this much was taken: two messages for a full window.
_ACK_EVERY: Final = s.OUTPUT_WINDOW // 2
_FIRST_ACK: Final = s.INITIAL_CREDIT // 2


class Output(Struct, frozen=True):
    """Bytes of stdout or stderr."""

    flow: int
    data: bytes


class Gap(Struct, frozen=True):
    """`count` bytes of the flow were dropped while nobody was attached."""

    flow: int
    count: int


JobEvent = s.Progress | s.Started | Output | Gap | s.FlowEnd | s.Exit


class _OutputFlow:
    """How far stdout or stderr has come, in bytes from its beginning."""

    def __init__(self) -> None:
        self.received = 0
        self.taken = 0
        self.acked = 0
        self.limit = s.INITIAL_CREDIT

    def begin(self, offset: int) -> int:
        """A connection begins at `offset`; gives the bytes that are missing before it."""
        gap = offset - self.received
        if gap < 0:
            raise AgentError("the machine repeats output that it was told had arrived")
        self.received += gap
        self.taken += gap
        self.acked = self.taken
        self.limit = self.received + s.INITIAL_CREDIT
        return gap

    @property
    def due(self) -> bool:
        """A Credit should be sent: a good part of what is allowed has been taken."""
        step = min(_ACK_EVERY, max(_FIRST_ACK, (self.limit - self.acked) // 2))
        return self.taken - self.acked >= step


class JobStream:
    """The client's half of a job stream.

    Args:
        opening: the first message of the first connection.
        machine: the machine's name, where the URL of the first connection has it.
        job: the job's number, where the URL has it.

    Attributes:
        machine, job: known after `Started`, or from the beginning.
        exit: how the command ended, once it has.
    """

    def __init__(
        self,
        opening: s.Start | s.Run | s.Attach,
        machine: str | None = None,
        job: int | None = None,
    ) -> None:
        self.machine = machine
        self.job = job
        self.exit: ExitResult | None = None
        self.started = False
        self._ever_started = False
        self._opening = opening
        self._outgoing: list[str | bytes] = []
        self._outputs = {s.STDOUT: _OutputFlow(), s.STDERR: _OutputFlow()}
        self._input = bytearray()  # from _acked on
        self._acked = 0
        self._sent = 0
        self._limit = 0
        self._input_ended = False
        self._input_end_sent = False
        self._controls: list[s.FromClient] = []

    # -- connections -----------------------------------------------------------------------------
    @property
    def can_attach(self) -> bool:
        """A lost connection can be replaced by one to the job's attach operation."""
        return (self._ever_started or isinstance(self._opening, s.Attach)) and self.exit is None

    def connected(self) -> None:
        """A connection has been made: to the first operation, or (later) to `attach`."""
        self._outgoing.clear()
        self.started = False
        self._input_end_sent = False
        if not self._ever_started:
            self._send(self._opening)
            return
        self._send(
            s.Attach(
                stdin_sent=self._sent,
                stdout_received=self._outputs[s.STDOUT].received,
                stderr_received=self._outputs[s.STDERR].received,
            )
        )

    def disconnected(self) -> None:
        """The connection is gone.

        Raises:
            HelperUnavailableError: the command cannot be taken up again.
        """
        self.started = False
        self._outgoing.clear()
        if not self.can_attach:
            raise HelperUnavailableError(
                "the helper ended before it had confirmed the command's start",
                next_step='see whether it runs with "vmgr jobs", then try again',
            )

    def take_outgoing(self) -> list[str | bytes]:
        """The messages to send now: str as text, bytes as binary."""
        messages = self._outgoing
        self._outgoing = []
        return messages

    # -- what arrives ----------------------------------------------------------------------------
    def receive(self, message: str | bytes) -> list[JobEvent]:
        """Take one message.

        Raises:
            VmgrError: the helper says that it failed.
            HelperUnavailableError: the message is none.
        """
        if isinstance(message, bytes):
            return self._receive_data(message)
        try:
            decoded = s.decode_from_helper(message)
        except msgspec.MsgspecError as error:
            raise HelperUnavailableError(
                f"a message of the helper is not understood: {error}",
                next_step='run "vmgr helper restart", so that both are of one version',
            ) from None
        if isinstance(decoded, s.Failed):
            raise error_of(decoded.error)
        if isinstance(decoded, s.Credit):
            self._credit(decoded)
            return []
        if isinstance(decoded, s.Started):
            return [*self._begin(decoded), decoded]
        if isinstance(decoded, s.Exit):
            self.exit = decoded.result
        elif isinstance(decoded, s.Done):
            raise HelperUnavailableError("the helper mixed up two kinds of stream")
        return [decoded]

    def _receive_data(self, message: bytes) -> list[JobEvent]:
        flow = self._outputs.get(message[0]) if message else None
        if flow is None or not self.started:
            raise HelperUnavailableError("the helper sent data of no known flow")
        flow.received += len(message) - 1
        if flow.received > flow.limit:
            raise AgentError("the machine sent more output than it was allowed to")
        return [Output(message[0], message[1:])]

    def _begin(self, started: s.Started) -> list[JobEvent]:
        self.machine, self.job = started.machine, started.job
        self.started = self._ever_started = True
        gaps: list[JobEvent] = []
        for number, offset in (
            (s.STDOUT, started.stdout_from),
            (s.STDERR, started.stderr_from),
        ):
            if gap := self._outputs[number].begin(offset):
                gaps.append(Gap(number, gap))
        arrived = started.stdin_received
        if arrived > self._sent and not self._input and self._sent == self._acked:
            self._acked = arrived  # someone before us sent it
        elif not self._acked <= arrived <= self._acked + len(self._input):
            raise AgentError("the machine claims input that was never sent")
        else:
            del self._input[: arrived - self._acked]
            self._acked = arrived
        self._sent = arrived
        self._limit = arrived + s.INITIAL_CREDIT
        for control in self._controls:
            self._send(control)
        self._controls.clear()
        self._push_input()
        return gaps

    # -- output ----------------------------------------------------------------------------------
    def taken(self, flow: int, count: int) -> None:
        """`count` more bytes of `flow` are where they belong: the sender may forget them."""
        state = self._outputs[flow]
        state.taken += count
        if self.started and self.exit is None and state.due:
            state.acked = state.taken
            state.limit = max(state.limit, state.taken + s.OUTPUT_WINDOW)
            self._send(s.Credit(flow=flow, acked=state.acked, limit=state.limit))

    # -- input -----------------------------------------------------------------------------------
    @property
    def input_room(self) -> int:
        """How many bytes `write` takes now."""
        return 0 if self._input_ended else s.STDIN_WINDOW - len(self._input)

    @property
    def input_delivered(self) -> bool:
        """All input that was written has reached the command."""
        return not self._input

    def write(self, data: bytes) -> None:
        """Queue input, at most `input_room` bytes."""
        if len(data) > self.input_room:
            raise ValueError("more input than there is room for")
        self._input += data
        self._push_input()

    def end_input(self) -> None:
        """No more input will follow."""
        self._input_ended = True
        self._push_input()

    def _push_input(self) -> None:
        if not self.started or self.exit is not None:
            return
        end = min(self._limit, self._acked + len(self._input))
        while self._sent < end:
            start = self._sent - self._acked
            piece = self._input[start : start + min(s.MAX_DATA, end - self._sent)]
            self._outgoing.append(bytes((s.STDIN,)) + piece)
            self._sent += len(piece)
        if (
            self._input_ended
            and not self._input_end_sent
            and self._sent == self._acked + len(self._input)
        ):
            self._input_end_sent = True
            self._send(s.FlowEnd(flow=s.STDIN))

    def _credit(self, credit: s.Credit) -> None:
        if credit.flow != s.STDIN or not self._acked <= credit.acked <= self._sent:
            raise HelperUnavailableError("the helper acknowledged input that was never sent")
        del self._input[: credit.acked - self._acked]
        self._acked = credit.acked
        self._limit = max(self._limit, credit.limit)
        self._push_input()

    # -- control ---------------------------------------------------------------------------------
    def signal(self, number: int) -> None:
        """Send a signal to the command's process group, at once or when it has started."""
        self._control(s.Signal(signal=number))

    def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal's size."""
        self._control(s.Resize(rows=rows, cols=cols))

    def detach(self) -> None:
        """Let the command go on without us."""
        self._control(s.Detach())

    def _control(self, message: s.FromClient) -> None:
        if self.exit is not None:
            return
        if self.started:
            self._send(message)
        else:
            if isinstance(message, s.Resize):  # only the last size matters
                self._controls = [c for c in self._controls if not isinstance(c, s.Resize)]
            self._controls.append(message)

    def _send(self, message: s.FromClient) -> None:
        self._outgoing.append(s.encode_message(message))
