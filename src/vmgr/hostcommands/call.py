"""One call from a machine, from first byte to last: a conversation, a decision, a command."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmgr.agent.flows import OUTPUT_WINDOW
from vmgr.agent.frames import STDOUT, ProtocolViolation
from vmgr.errors import VmgrError
from vmgr.hostcommands import conversation as c
from vmgr.hostcommands.running import Running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from vmgr.agent import AgentChannel, JobExit, Stream
    from vmgr.userenv import Person

__all__ = ["Call", "Plan", "Refused"]

_FIRST_WORD: Final = 10.0  # seconds in which a caller says what it wants
_GOODBYE: Final = 5.0
_QUEUED: Final = 131_072  # bytes towards the machine before its command's output is left unread


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    argv: list[str]
    cwd: str | None = None
    """None: the person's home."""
    extra: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 (an answer, not an error)
    """It is not run. `code` is for the machine's `host`, `message` for who called it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Call:
    """Somebody in a machine who wants something; what the agent says of the stream comes here.

    Args:
        decide: what is to be run for what was asked; raises `Refused`.
        person: for whom.
    """

    def __init__(self, decide: Callable[[c.Asked], Awaitable[Plan]], person: Person) -> None:
        self._decide = decide
        self._person = person
        self._conversation = c.Conversation()
        self._asked: asyncio.Future[c.Asked] = asyncio.get_running_loop().create_future()
        self._running: Running | None = None
        self._early: list[c.Event] = []
        self._gone = asyncio.Event()
        self._room = asyncio.Event()
        self._send_now = asyncio.Event()
        self._sent = asyncio.Event()
        self._queue = bytearray()
        self._received = self._granted = 0
        self._stream: Stream | None = None
        self.outcome = "gave up"
        """How it ended, in words."""
        self.asked: c.Asked | None = None

    async def serve(self, channel: AgentChannel, number: int) -> None:
        """Take the call and stay until it is over."""
        self._stream = stream = await channel.answer_call(number, self)
        self._grant()
        sending = asyncio.create_task(self._send(stream), name="to a caller")
        talking = asyncio.create_task(self._talk(), name="a call")
        gone = asyncio.create_task(self._gone.wait(), name="a caller goes")
        try:
            await asyncio.wait({talking, gone}, return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                talking.result()
                await self._goodbye(stream, gone)
        finally:
            await _end(talking, gone, sending)
            stream.close()

    # -- what the agent says: see vmgr.agent.JobSink ---------------------------------------------

    def started(self, job: object) -> None:
        """Only jobs start."""

    def data(self, flow: int, data: bytes) -> None:
        """Bytes of the machine's."""
        if flow != STDOUT or self._gone.is_set():
            return
        self._received += len(data)
        try:
            for event in self._conversation.receive(data):
                self._happened(event)
        except ProtocolViolation as violation:
            self.outcome = f"broke the protocol: {violation.reason}"
            self._gone.set()
        else:
            self._grant()

    def eof(self, flow: int) -> None:
        """The program in the machine has gone."""
        del flow
        self._gone.set()

    def credit(self, acked: int, limit: int) -> None:
        """More can be sent."""
        del acked, limit
        self._send_now.set()

    def exit(self, result: JobExit) -> None:
        """The connection is over."""
        del result
        self._gone.set()

    def failed(self, error: VmgrError) -> None:
        """The connection broke."""
        del error
        self._gone.set()

    # -- the call --------------------------------------------------------------------------------

    async def _talk(self) -> None:
        try:
            async with asyncio.timeout(_FIRST_WORD):
                asked = await self._asked
        except TimeoutError:
            self._conversation.failed("invalid", "no request came")
            self.outcome = "asked for nothing"
            self._flush()
            return
        self.asked = asked
        try:
            plan = await self._decide(asked)
        except Refused as refused:
            self._refuse(refused.code, refused.message, f"refused: {refused.message}")
            return
        except VmgrError as error:
            self._refuse("refused", str(error), f"refused: {error.message}")
            return
        try:
            running = await Running.start(
                self._person, plan.argv, cwd=plan.cwd, extra=plan.extra, size=asked.tty
            )
        except OSError as error:
            code = "not-found" if isinstance(error, FileNotFoundError) else "not-executable"
            why = f"it could not be started on the host: {error.strerror}"
            self._refuse(code, why, why)
            return
        try:
            await self._carry(running)
        finally:
            self._running = None
            await running.close()

    def _refuse(self, code: str, message: str, outcome: str) -> None:
        self._conversation.failed(code, message)
        self.outcome = outcome
        self._flush()

    async def _carry(self, running: Running) -> None:
        """From a command's start to its end."""
        if self._gone.is_set():  # it lied, or left, while this was being started
            return
        self._running = running
        self._conversation.started()
        self._flush()
        early, self._early = self._early, []
        for event in early:
            self._happened(event)
        crediting = asyncio.create_task(self._credit(running), name="credit of a caller")
        try:
            async with asyncio.TaskGroup() as outputs:
                for flow in running.flows:
                    outputs.create_task(self._carry_output(running, flow))
            status = await running.wait()
        finally:
            await _end(crediting)
        if status.signal is not None:
            self.outcome = f"ended by signal {status.signal}"
        else:
            self.outcome = f"exited with {status.code}"
        self._conversation.exited(code=status.code, signal=status.signal)
        self._flush()

    async def _carry_output(self, running: Running, flow: int) -> None:
        while True:
            while not (room := self._conversation.room(flow)) or len(self._queue) > _QUEUED:
                self._room.clear()
                await self._room.wait()
            data = await running.read(flow, room)
            if not data:
                return
            self._conversation.send(flow, data)
            self._flush()

    async def _credit(self, running: Running) -> None:
        while True:
            await running.on_taken.wait()
            running.on_taken.clear()
            self._conversation.took(running.taken)
            self._flush()

    def _happened(self, event: c.Event) -> None:
        if isinstance(event, c.Asked):
            if not self._asked.done():
                self._asked.set_result(event)
            return
        if isinstance(event, c.Credit):
            self._room.set()
            return
        running = self._running
        if running is None:
            # Before the command runs: bounded by what the conversation grants and counts.
            if not self._conversation.over:
                self._early.append(event)
            return
        match event:
            case c.Input(data):
                running.write(data)
            case c.InputEnded():
                running.end_input()
            case c.Signalled(number):
                running.signal(signal.Signals(number))
            case c.Resized(size):
                running.resize(size)

    # -- bytes -----------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._queue += self._conversation.take_output()
        self._sent.clear()
        self._send_now.set()

    async def _send(self, stream: Stream) -> None:
        with contextlib.suppress(VmgrError):  # the channel is over: whoever it concerns is told so
            while True:
                while self._queue and (room := min(stream.stdin_room, len(self._queue))):
                    part = bytes(self._queue[:room])
                    del self._queue[:room]
                    await stream.send_stdin(part)
                    self._room.set()
                if not self._queue:
                    self._sent.set()
                self._send_now.clear()
                await self._send_now.wait()
        self._sent.set()
        self._gone.set()

    def _grant(self) -> None:
        """What was read is understood, and kept nowhere: the machine may send as much again."""
        if self._stream is not None and self._received + OUTPUT_WINDOW // 2 > self._granted:
            self._granted = self._received + OUTPUT_WINDOW
            with contextlib.suppress(VmgrError):
                self._stream.grant(STDOUT, self._received, self._granted)

    async def _goodbye(self, stream: Stream, gone: asyncio.Task[bool]) -> None:
        """Let the last word arrive."""
        sent = asyncio.create_task(self._sent.wait(), name="last word")
        await asyncio.wait({sent, gone}, timeout=_GOODBYE, return_when=asyncio.FIRST_COMPLETED)
        sent.cancel()
        if not self._gone.is_set():
            stream.close_stdin()
            await asyncio.wait({gone}, timeout=_GOODBYE)


async def _end(*tasks: asyncio.Task[object]) -> None:
    """Cancel tasks and await their clean-up."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
