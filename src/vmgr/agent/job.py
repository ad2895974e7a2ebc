"""A job's streams, as the helper holds them.

Nothing is buffered here: output goes to the sink as it comes, and comes only as far as the sink's
owner granted; stdin goes out only as far as the agent granted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from vmgr.agent.flows import OUTPUT_WINDOW
from vmgr.agent.frames import MAX_DATA, STDERR, STDOUT
from vmgr.agent.messages import Attached, JobExit, Resize, TerminalSize

if TYPE_CHECKING:
    from vmgr.agent.channel import AgentChannel
    from vmgr.agent.messages import Started
    from vmgr.errors import VmgrError

__all__ = ["CaptureSink", "Completed", "Job", "JobSink", "Stream"]


class JobSink(Protocol):
    """What a job's consumer is told. Called on the loop's thread; must not block, must not raise.

    `started` comes first, then any of the others; after `exit` or `failed` nothing more.
    """

    def started(self, job: Job) -> None:
        """The job runs; `job` says where its flows go on."""

    def data(self, flow: int, data: bytes) -> None:
        """Output: at most 32,768 bytes, never beyond what was granted."""

    def eof(self, flow: int) -> None:
        """An output has ended."""

    def credit(self, acked: int, limit: int) -> None:
        """The job took `acked` bytes of stdin; up to `limit` may be sent."""

    def exit(self, result: JobExit) -> None:
        """The job has ended. Its record stays in the machine until `Job.close`."""

    def failed(self, error: VmgrError) -> None:
        """The stream is over; the job may still run."""


class Stream:
    """Bytes to and from something in the machine: `stdin` towards it, `stdout` from it."""

    def __init__(self, channel: AgentChannel, number: int) -> None:
        self._channel = channel
        self._number = number

    @property
    def stdin_room(self) -> int:
        """Bytes that `send_stdin` takes now."""
        return self._channel.session.stdin_room(self._number)

    async def send_stdin(self, data: bytes) -> None:
        """Send to the job's stdin; waits while the machine does not read its port.

        Raises:
            CreditError: beyond what the agent granted; the part within it may have been sent.
            AgentError: the channel is over.
        """
        for at in range(0, len(data), MAX_DATA):
            await self._channel.room()
            self._channel.session.send_data(self._number, data[at : at + MAX_DATA])
            self._channel.flush()

    def close_stdin(self) -> None:
        """The job reads end-of-file after what was sent."""
        self._channel.session.send_eof(self._number)
        self._channel.flush()

    def grant(self, flow: int, acked: int, limit: int) -> None:
        """The consumer has taken all of `flow` before `acked` and has room up to `limit`.

        Raises:
            UsageError: the offsets break the rules of credit.
        """
        self._channel.session.grant(self._number, flow, acked, limit)
        self._channel.flush()

    def close(self) -> None:
        """The end: after `exit` the receipt, its record goes; a job that runs goes on, detached."""
        self._channel.release(self._number)
        self._channel.session.close(self._number)
        self._channel.flush()


class Job(Stream):
    """A running job that this channel is attached to."""

    def __init__(self, channel: AgentChannel, number: int, reply: Started | Attached) -> None:
        super().__init__(channel, number)
        self.id = reply.job
        """Unique within a boot of the machine."""
        self.pid = reply.pid
        start = reply if isinstance(reply, Attached) else Attached(job=reply.job, pid=reply.pid)
        self.stdin_received = start.stdin_received
        self.stdout_from = start.stdout_from
        self.stderr_from = start.stderr_from

    def signal(self, number: int) -> None:
        """Signal the job's process group; on a terminal its foreground group."""
        self._channel.session.control(self._number, {"signal": number})
        self._channel.flush()

    def resize(self, rows: int, cols: int) -> None:
        """The terminal has a new size."""
        self._channel.session.control(
            self._number, Resize(resize=TerminalSize(rows=rows, cols=cols))
        )
        self._channel.flush()

    def hangup(self) -> None:
        """The consumer has gone: end the job. Its sink hears nothing more."""
        self._channel.release(self._number)
        self._channel.session.abandon(self._number, hangup=True)
        self._channel.flush()

    def detach(self) -> None:
        """Let the job go on without a consumer. Its sink hears nothing more."""
        self.close()


@dataclass(frozen=True)
class Completed:
    """A command that was run to its end. Outputs are their last bytes."""

    exit: JobExit
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.exit.code == 0


class CaptureSink:
    """Keeps the last `limit` bytes of each output and feeds stdin, for commands of our own."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: Final[dict[int, deque[bytes]]] = {STDOUT: deque(), STDERR: deque()}
        self._sizes = {STDOUT: 0, STDERR: 0}
        self._received = {STDOUT: 0, STDERR: 0}
        self._granted = {STDOUT: 0, STDERR: 0}
        self._job: Job | None = None
        self._credit = asyncio.Event()
        self._result: asyncio.Future[JobExit] = asyncio.get_running_loop().create_future()

    def started(self, job: Job) -> None:
        """See `JobSink`."""
        self._job = job

    def data(self, flow: int, data: bytes) -> None:
        """See `JobSink`."""
        kept = self._kept[flow]
        kept.append(data)
        self._sizes[flow] += len(data)
        while kept and self._sizes[flow] - len(kept[0]) >= self._limit:
            self._sizes[flow] -= len(kept.popleft())
        received = self._received[flow] = self._received[flow] + len(data)
        if self._job is not None and received + OUTPUT_WINDOW // 2 > self._granted[flow]:
            self._granted[flow] = received + OUTPUT_WINDOW
            self._job.grant(flow, received, self._granted[flow])

    def eof(self, flow: int) -> None:
        """See `JobSink`."""

    def credit(self, acked: int, limit: int) -> None:  # noqa: ARG002 (the session has counted them)
        """See `JobSink`."""
        self._credit.set()

    def exit(self, result: JobExit) -> None:
        """See `JobSink`."""
        if not self._result.done():
            self._result.set_result(result)
        self._credit.set()

    def failed(self, error: VmgrError) -> None:
        """See `JobSink`."""
        if not self._result.done():
            self._result.set_exception(error)
            self._result.exception()  # seen: `completed` raises it if somebody still waits
        self._credit.set()

    async def feed(self, job: Job, data: bytes) -> None:
        """Send all of `data` and its end, as the job takes it."""
        at = 0
        while at < len(data) and not self._result.done():
            self._credit.clear()
            room = min(job.stdin_room, MAX_DATA)
            if room:
                await job.send_stdin(data[at : at + room])
                at += room
            else:
                await self._credit.wait()
        job.close_stdin()

    async def completed(self) -> Completed:
        """Wait for the end."""
        result = await self._result
        return Completed(result, self.output(STDOUT), self.output(STDERR))

    def output(self, flow: int) -> bytes:
        """What is kept of an output."""
        return b"".join(self._kept[flow])[-self._limit :]
