"""Moves a job's streams between a client's WebSocket and the machine's agent.

Nothing is buffered here beyond the windows: the client grants credit for output once it has taken
it, the agent grants credit for input, and both grants pass through as they are.

How a relay ends decides what becomes of the job:

- the job ended and the client has been told: its record in the machine is dropped once the client
  has closed its end (its receipt);
- the client went without a word: the job is hung up;
- the client detached: the job goes on;
- the machine was suspended: the job goes on with it, and the client is told how to come back;
- the helper stops or dies: the job goes on and waits for the client to attach again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import WSMsgType

from vmgr.api import streams
from vmgr.api.models import ExitResult
from vmgr.errors import AgentError, UsageError, VmgrError
from vmgr.helper.server import error_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from vmgr.agent import Job, JobExit
    from vmgr.helper.machine import Machine

__all__ = ["JobRelay", "RelayEnd", "exit_result"]

RECEIPT_DEADLINE: Final = 10.0  # seconds a client gets to close its end after Exit
_SIGNAL_MAX: Final = 64
_CELLS_MAX: Final = 65_535

log = logging.getLogger(__name__)


class RelayEnd(Enum):
    """How a relay ended."""

    EXITED = "exited"
    CLIENT_GONE = "client gone"
    DETACHED = "detached"
    FAILED = "failed"


class JobRelay:
    """One client's hold on one job; the job's sink (see `vmgr.agent.JobSink`).

    Args:
        detached: the job was started to go on without its client.
        machine: where the job runs, of one that can be suspended.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        *,
        detached: bool = False,
        machine: Machine | None = None,
    ) -> None:
        self._socket = socket
        self._detached = detached
        self._machine = machine
        self._job: Job | None = None
        # Bounded by the credit windows: at most two windows of data and a few messages.
        self._outgoing: asyncio.Queue[bytes | streams.FromHelper] = asyncio.Queue()
        self._machine_gone = False
        self.before_exit: Callable[[], Awaitable[object]] | None = None
        """Awaited before the client is told that the job has ended."""

    # -- the job's sink, called by the agent channel ------------------------------------------

    def started(self, job: Job) -> None:
        self._job = job

    def data(self, flow: int, data: bytes) -> None:
        self._outgoing.put_nowait(bytes((flow,)) + data)

    def eof(self, flow: int) -> None:
        self._outgoing.put_nowait(streams.FlowEnd(flow=flow))

    def credit(self, acked: int, limit: int) -> None:
        self._outgoing.put_nowait(streams.Credit(flow=streams.STDIN, acked=acked, limit=limit))

    def exit(self, result: JobExit) -> None:
        self._outgoing.put_nowait(streams.Exit(result=exit_result(result)))

    def failed(self, error: VmgrError) -> None:
        self._machine_gone = True
        if self._job is not None and self._machine is not None and self._machine.is_saved:
            name = self._machine.name
            error = AgentError(
                f"machine {name} was suspended, with the command in it",
                next_step=f"go on with both: vmgr attach {name} {self._job.id}",
            )
        self._outgoing.put_nowait(streams.Failed(error=error_body(error)))

    # -- the relay -------------------------------------------------------------------------

    async def run(self, job: Job, started: streams.Started) -> RelayEnd:
        """Relay until the job or the client ends."""
        self._job = job
        try:
            await self._send(started)
        except ConnectionError:  # it has gone while the job was started
            self._settle(job, RelayEnd.CLIENT_GONE)
            return RelayEnd.CLIENT_GONE
        sending = asyncio.create_task(self._send_all(), name=f"job {job.id} to client")
        receiving = asyncio.create_task(self._receive_all(job), name=f"client to job {job.id}")
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                end = receiving.result()
            else:
                end = sending.result()
                if end is RelayEnd.EXITED:
                    async with asyncio.timeout(RECEIPT_DEADLINE):
                        await receiving
        except TimeoutError:
            end = RelayEnd.EXITED
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
        self._settle(job, end)
        return end

    def _settle(self, job: Job, end: RelayEnd) -> None:
        if self._machine_gone:
            return
        try:
            match end:
                case RelayEnd.EXITED:
                    job.close()
                case RelayEnd.CLIENT_GONE if not self._detached:
                    job.hangup()
                case RelayEnd.CLIENT_GONE | RelayEnd.DETACHED:
                    job.detach()
                case RelayEnd.FAILED:
                    pass
        except AgentError as error:
            log.info("job %d: its machine went first: %s", job.id, error)

    async def _send_all(self) -> RelayEnd:
        while True:
            message = await self._outgoing.get()
            if isinstance(message, streams.Exit) and self.before_exit is not None:
                await self.before_exit()
            try:
                if isinstance(message, bytes):
                    await self._socket.send_bytes(message)
                    continue
                await self._send(message)
            except ConnectionError:
                return RelayEnd.CLIENT_GONE
            if isinstance(message, streams.Exit):
                return RelayEnd.EXITED
            if isinstance(message, streams.Failed):
                return RelayEnd.FAILED

    async def _receive_all(self, job: Job) -> RelayEnd:
        while True:
            message = await self._socket.receive()
            try:
                if message.type is WSMsgType.BINARY:
                    if message.data[:1] != bytes((streams.STDIN,)):
                        raise UsageError("a client sends data for stdin only")
                    await job.send_stdin(message.data[1:])
                elif message.type is WSMsgType.TEXT:
                    request = streams.decode_from_client(message.data)
                    if isinstance(request, streams.Detach):
                        return RelayEnd.DETACHED
                    _forward(job, request)
                else:
                    return RelayEnd.CLIENT_GONE
            except AgentError:
                # The channel's end reaches the client as Failed, after the output before it.
                await asyncio.get_running_loop().create_future()
            except (VmgrError, msgspec.MsgspecError, RecursionError) as error:
                problem = error if isinstance(error, VmgrError) else UsageError(
                    f"the client broke the stream's protocol: {error}"
                )  # fmt: skip
                with contextlib.suppress(ConnectionError):
                    await self._send(streams.Failed(error=error_body(problem)))
                return RelayEnd.CLIENT_GONE

    async def _send(self, message: streams.FromHelper) -> None:
        await self._socket.send_str(streams.encode_message(message))


def _forward(job: Job, request: streams.FromClient) -> None:
    match request:
        case streams.Credit(flow=flow, acked=acked, limit=limit):
            job.grant(flow, acked, limit)
        case streams.FlowEnd(flow=streams.STDIN):
            job.close_stdin()
        case streams.Signal(signal=number):
            if not 0 <= number <= _SIGNAL_MAX:
                raise UsageError(f"there is no signal {number}")
            job.signal(number)
        case streams.Resize(rows=rows, cols=cols):
            job.resize(*(min(max(0, cells), _CELLS_MAX) for cells in (rows, cols)))
        case _:
            raise UsageError(f"{type(request).__name__} has no place in a stream that runs")


def exit_result(result: JobExit) -> ExitResult:
    """The agent's word for an end, in the API's terms."""
    return ExitResult(
        code=result.code,
        signal=result.signal,
        core=result.core,
        dropped_stdout=result.dropped.stdout,
        dropped_stderr=result.dropped.stderr,
    )
