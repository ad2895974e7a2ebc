"""Starting jobs in the machine that a connection is for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmgr.api import streams as s
from vmgr.api.models import ExecSpec
from vmgr.client.jobstream import Output
from vmgr.errors import ExecError, UsageError, WrongStateError

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Literal

    from vmgr.client.aio import AsyncClient
    from vmgr.client.aiojob import AsyncJob
    from vmgr.client.jobstream import JobEvent

    Builtin = Literal["connect", "listen", "accept"]

__all__ = ["LineReader", "StartedJob", "Target", "connected_job"]

# A start that is asked for has 30 s. Of hundreds at once in an emulated machine the last would be
# too late, so they wait here, where they have all the time.
_STARTS_AT_ONCE: Final = 16
_NAME_MAX: Final = 256
_LINE_MAX: Final = 4_096
_SAID_MAX: Final = 1_024


@dataclass
class StartedJob:
    """A job that runs, and what has been heard of it while it was started."""

    job: AsyncJob
    events: list[JobEvent] = field(default_factory=list)


class Target:
    """Whom a connection is for: `MACHINE` or `USER@MACHINE`, as its user name says.

    Args:
        login: the user name.
        turns: who may start a job now, by machine.
    """

    def __init__(
        self, client: AsyncClient, login: str, turns: MutableMapping[str, asyncio.Semaphore]
    ) -> None:
        user, _, machine = login.rpartition("@")
        self.client = client
        self.machine = machine
        self.user = user or None
        self._turns = turns.setdefault(machine, asyncio.Semaphore(_STARTS_AT_ONCE))
        self._valid = 0 < len(machine) <= _NAME_MAX and len(user) <= _NAME_MAX and "/" not in login

    async def start(self, spec: ExecSpec) -> StartedJob:
        """Start a job; a machine that does not run is started.

        Raises:
            VmgrError: it could not be done.
        """
        if not self._valid:
            raise UsageError(
                "the user name names no machine", next_step="say it as in: ssh MACHINE@vmgr"
            )
        try:
            return await self._start(spec)
        except WrongStateError:
            await self.client.machine_start(self.machine)
            return await self._start(spec)

    async def start_builtin(self, name: Builtin, *arguments: str) -> StartedJob:
        """Start one of the agent's own programs as this connection's user."""
        spec = ExecSpec(argv=[name, *arguments], builtin=name, user=self.user, stdin=True)
        return await self.start(spec)

    async def _start(self, spec: ExecSpec) -> StartedJob:
        async with self._turns:
            return await self._start_now(spec)

    async def _start_now(self, spec: ExecSpec) -> StartedJob:
        started = StartedJob(await self.client.exec(self.machine, spec))
        try:
            while not started.job.stream.started:
                started.events += await started.job.wait_events()
        except BaseException:
            started.job.close()
            raise
        return started


class LineReader:
    """Takes lines off a job's stdout; what it says to stderr is kept for an error's sentence."""

    def __init__(self, started: StartedJob) -> None:
        self._started = started
        self._said = b""
        self._buffer = b""

    async def line(self) -> list[str] | None:
        """The words of the next line; None when the job has ended, or its line is too long."""
        job = self._started.job
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LINE_MAX:
                return None
            if not self._started.events:
                if job.stream.exit is not None:
                    return None
                self._started.events += await job.wait_events()
                continue
            event = self._started.events.pop(0)
            if isinstance(event, Output):
                job.stream.taken(event.flow, len(event.data))
                if event.flow == s.STDOUT:
                    self._buffer += event.data
                else:
                    self._said = (self._said + event.data)[:_SAID_MAX]
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").split()

    @property
    def rest(self) -> bytes:
        """What came on stdout after the last line."""
        return self._buffer

    async def line_of(self, first: str, count: int) -> list[str]:
        """The next line, which must have `count` words and begin so.

        Raises:
            ExecError: it does not; what the job said to stderr tells why.
        """
        words = await self.line()
        if words is None or words[0:1] != [first] or len(words) != count:
            said = self._said.decode(errors="replace").strip().splitlines()
            raise ExecError(said[-1] if said else "it ended without a word")
        return words


async def connected_job(target: Target, name: Builtin, *arguments: str) -> tuple[StartedJob, bytes]:
    """A job that is one connection, and the first bytes of that.

    Raises:
        VmgrError: it could not be connected.
    """
    started = await target.start_builtin(name, *arguments)
    try:
        reader = LineReader(started)
        await reader.line_of("connected", 1)
    except BaseException:
        started.job.close()
        raise
    return started, reader.rest
