"""Bytes of one SSH channel on their way to a job and back, each no faster than the other takes it.

Output is written to the channel as it comes, and acknowledged to the machine once the channel has
room again: so what waits here is at most the windows that the job was granted. Input waits here
until the job has room; beyond `_INPUT_HIGH` the channel is not read, whose own window then closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import asyncssh

from vmgr.api import streams as s
from vmgr.client.jobstream import Output

if TYPE_CHECKING:
    from vmgr.api.models import ExitResult, TerminalSize
    from vmgr.client.aiojob import AsyncJob
    from vmgr.client.jobstream import JobEvent
    from vmgr.ssh.jobs import StartedJob

__all__ = ["Channel", "Pump"]

_INPUT_HIGH: Final = 524_288
_INPUT_LOW: Final = 131_072


class Channel(Protocol):
    """What is used of an SSH channel."""

    def write(self, data: bytes, datatype: int | None = None) -> None:
        """Queue data."""

    def write_eof(self) -> None:
        """No more data follows."""

    def pause_reading(self) -> None:
        """Call `received` no more for now."""

    def resume_reading(self) -> None:
        """Go on calling it."""


class Pump:
    """One channel's bytes; its session passes the channel's calls on to it."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._job: AsyncJob | None = None
        self._pending: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._reading_paused = False
        self._writing_paused = False
        self._untaken = {s.STDOUT: 0, s.STDERR: 0}
        self._delivered = asyncio.Event()
        self._early_signal: int | None = None
        self._early_size: TerminalSize | None = None
        self._turn = asyncio.Event()

    # -- what the channel says -----------------------------------------------------------------
    def opened(self, channel: Channel) -> None:
        """The channel is there."""
        self._channel = channel

    def received(self, data: bytes) -> None:
        """Data for the job."""
        self._pending.append(data)
        self._size += len(data)
        if self._size > _INPUT_HIGH and not self._reading_paused and self._channel is not None:
            self._reading_paused = True
            self._channel.pause_reading()
        self._turn.set()

    def received_end(self) -> None:
        """No more data follows."""
        self._ended = True
        self._turn.set()

    def pause_writing(self) -> None:
        """The channel has no room."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """It has room again."""
        self._writing_paused = False
        self._take()
        self._turn.set()

    async def delivered(self) -> None:
        """Wait until the job has all data up to its end; what it says meanwhile is dropped."""
        self.resume_writing()
        await self._delivered.wait()

    # -- the job -------------------------------------------------------------------------------
    async def run(
        self, started: StartedJob, *, first: bytes = b"", pass_end: bool = False
    ) -> ExitResult:
        """Move bytes until the job has ended.

        Args:
            first: output that has been taken from the job already.
            pass_end: whether the end of stdout is the channel's end of data.

        Raises:
            VmgrError: the job's machine or the helper failed.
        """
        job = self._job = started.job
        if self._early_size is not None:
            self.resize(self._early_size)
        if self._early_signal is not None:
            self.signal(self._early_signal)
        feeding = asyncio.create_task(self._feed(job), name=f"feed job {job.stream.job}")
        try:
            if first:
                self._write(s.STDOUT, first)
            self._handle(started.events, pass_end=pass_end)
            while job.stream.exit is None:
                self._turn.set()
                self._handle(await job.wait_events(), pass_end=pass_end)
            return job.stream.exit
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            job.close()

    def signal(self, number: int) -> None:
        """Signal the job, at once or when there is one."""
        if self._job is None:
            self._early_signal = number
        else:
            self._job.stream.signal(number)
            self._turn.set()

    def resize(self, size: TerminalSize) -> None:
        """Tell the job's terminal its size, at once or when there is one."""
        if self._job is None:
            self._early_size = size
        else:
            self._job.stream.resize(size.rows, size.cols)
            self._turn.set()

    def _handle(self, events: list[JobEvent], *, pass_end: bool) -> None:
        for event in events:
            if isinstance(event, Output):
                self._write(event.flow, event.data)
                self._untaken[event.flow] += len(event.data)
                if not self._writing_paused:
                    self._take()
            elif isinstance(event, s.FlowEnd) and event.flow == s.STDOUT and pass_end:
                assert self._channel is not None  # noqa: S101 (it is open)
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    self._channel.write_eof()

    def _write(self, flow: int, data: bytes) -> None:
        assert self._channel is not None  # noqa: S101 (it is open)
        kind = asyncssh.EXTENDED_DATA_STDERR if flow == s.STDERR else None
        with contextlib.suppress(OSError):  # it was closed meanwhile; its end ends the job
            self._channel.write(data, kind)

    def _take(self) -> None:
        if self._job is None:
            return
        for flow, count in self._untaken.items():
            if count:
                self._untaken[flow] = 0
                self._job.stream.taken(flow, count)

    async def _feed(self, job: AsyncJob) -> None:
        stream = job.stream
        told_end = False
        while True:
            await self._turn.wait()
            self._turn.clear()
            while self._pending and (room := stream.input_room):
                data = self._pending.popleft()
                if len(data) > room:
                    self._pending.appendleft(data[room:])
                    data = data[:room]
                self._size -= len(data)
                stream.write(data)
            if self._ended and not self._pending and not told_end:
                told_end = True
                stream.end_input()
            if told_end and stream.input_delivered:
                self._delivered.set()
            if self._reading_paused and self._size < _INPUT_LOW and self._channel is not None:
                self._reading_paused = False
                self._channel.resume_reading()
            await job.flush()
