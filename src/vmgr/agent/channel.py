"""The agent channel: the protocol's session over the VMM's socket, on the event loop.

What keeps a machine from harming the helper through it:

- a turn of the loop reads at most 128 KiB and hands on at most `_EVENTS_PER_TURN` events, then
  others are served; the session holds one read and one frame at most;
- what is queued for a machine that does not read its port is bounded (`vmgr.agent.wire`): stdin and
  requests wait for room, and small messages end the channel when they pile up;
- every request has a deadline; every violation ends the channel with its reason, leaves the machine
  alone and tells every consumer.

QEMU takes no bytes from its socket until a program in the machine has opened the port, so the hello
may be written at once and waits in the socket's buffer. It is lost only when the machine *resets*
after reading it: connect anew then.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vmgr.agent import events as e
from vmgr.agent import messages as m
from vmgr.agent.execcheck import check_exec
from vmgr.agent.failures import printable, to_error
from vmgr.agent.frames import ProtocolViolation
from vmgr.agent.job import CaptureSink, Completed, Job, Stream
from vmgr.agent.keys import next_key
from vmgr.agent.requests import MachineRequests
from vmgr.agent.session import Session
from vmgr.agent.wire import Wire
from vmgr.errors import AgentError, VmgrError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmgr.agent.job import JobSink
    from vmgr.agent.keys import KeyStore

__all__ = ["DEFAULT_DEADLINE", "AgentChannel"]

DEFAULT_DEADLINE: Final = 30.0
"""Seconds in which a request must be answered."""
_EVENTS_PER_TURN: Final = 128
_CONNECT_DEADLINE: Final = 5.0
_CLOSE_DEADLINE: Final = 5.0

_M = TypeVar("_M", bound=m.Message)


class AgentChannel(MachineRequests):
    """One connection to one machine's agent. Made by `connect`; ended by `close`."""

    def __init__(
        self,
        sock: socket.socket,
        keys: KeyStore,
        candidates: Sequence[bytes],
        key: bytes,
        *,
        machine: str,
        host_version: str,
        on_event: Callable[[m.AgentEvent], None],
        logger: logging.Logger,
        deadline: float,
    ) -> None:
        self.machine = machine
        self.session = Session(host_version)
        self._on_event = on_event
        self._logger = logger
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Handle | None = None
        self._hello: asyncio.Future[m.AgentHello] = self._loop.create_future()
        self._closed: asyncio.Future[AgentError] = self._loop.create_future()
        self._requests: dict[int, asyncio.Future[m.Message]] = {}
        self._asked: dict[int, m.Request] = {}
        self._sinks: dict[int, JobSink] = {}
        self._jobs: dict[int, Stream] = {}
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._keys = keys
        self._key = key
        self._confirming: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  # the agent's key is known, or the channel is over
        self._wire = Wire(sock, on_data=self._received, on_end=self._end)
        self.session.start(candidates, key)
        self.flush()

    # -- life --------------------------------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        socket_path: Path,
        keys: KeyStore,
        *,
        machine: str,
        host_version: str,
        on_event: Callable[[m.AgentEvent], None],
        logger: logging.Logger,
        deadline: float = DEFAULT_DEADLINE,
    ) -> AgentChannel:
        """Connect to the VMM's agent socket and say hello; waits for no answer (see `hello`).

        Args:
            socket_path: the socket on which the VMM listens.
            keys: this machine's resync keys; the next one is stored before it is sent.
            machine: its name, for sentences.
            host_version: the helper's, for the agent's log.
            on_event: called on the loop with each event of the machine; must not block or raise.
            logger: told of the channel's end.
            deadline: seconds in which each request must be answered.

        Raises:
            AgentError: the VMM does not take the connection.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(0)
            async with asyncio.timeout(_CONNECT_DEADLINE):
                await asyncio.get_running_loop().sock_connect(sock, os.fspath(socket_path))
        except (OSError, TimeoutError) as error:
            sock.close()
            reason = (
                error.strerror if isinstance(error, OSError) and error.strerror else "no answer"
            )
            raise AgentError(
                f"the VMM of {machine} cannot be reached: {reason}",
                next_step=f"see its state with `vmgr info {machine}`",
            ) from error
        except BaseException:
            sock.close()
            raise
        return await cls.over(
            sock, keys, machine=machine, host_version=host_version, on_event=on_event,
            logger=logger, deadline=deadline,
        )  # fmt: skip

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        keys: KeyStore,
        *,
        machine: str,
        host_version: str,
        on_event: Callable[[m.AgentEvent], None],
        logger: logging.Logger,
        deadline: float = DEFAULT_DEADLINE,
    ) -> AgentChannel:
        """The same over a connected stream socket, which the channel owns from here on."""
        try:
            candidates = await keys.candidates()
            key, is_new = next_key(candidates)
            if is_new:
                await keys.store_next(key)
        except BaseException:
            sock.close()
            raise
        return cls(
            sock, keys, candidates, key, machine=machine, host_version=host_version,
            on_event=on_event, logger=logger, deadline=deadline,
        )  # fmt: skip

    @property
    def closed(self) -> bool:
        """Whether the channel is over."""
        return self._closed.done()

    async def hello(self) -> m.AgentHello:
        """Wait for the agent's hello: the machine is ready. Give it a deadline of your own.

        Raises:
            AgentError: the channel ended before.
        """
        return await asyncio.shield(self._hello)

    async def wait_closed(self) -> AgentError:
        """Wait for the channel's end; gives its reason."""
        return await asyncio.shield(self._closed)

    def close(self) -> None:
        """End the channel; jobs go on in the machine. Does nothing a second time."""
        self._end("the connection was closed")

    async def aclose(self) -> None:
        """`close`, and wait for what is still being written down, but not for ever."""
        self.close()
        if self._confirming is not None:
            await asyncio.wait([self._confirming], timeout=_CLOSE_DEADLINE)
            self._confirming.cancel()

    # -- jobs --------------------------------------------------------------------------------------

    async def exec(self, request: m.ExecRequest, sink: JobSink) -> Job:
        """Start a job; `sink` hears of it before this returns.

        A cancellation ends the job, also one that the agent is only about to start.

        Raises:
            UsageError: the request cannot be sent.
            ExecError: the command could not be started.
            AgentError: no answer in time, or the channel is over.
        """
        check_exec(request)
        return await self._start_job(request, sink)

    async def attach(
        self,
        job: int,
        sink: JobSink,
        *,
        stdin_sent: int = 0,
        stdout_received: int = 0,
        stderr_received: int = 0,
    ) -> Job:
        """Take over a job's streams; offsets are what this consumer already has, in bytes.

        Raises:
            NotFoundError: there is no such job.
            AgentError: no answer in time, or the channel is over.
        """
        request = m.Attach(
            job=job, stdin_sent=stdin_sent, stdout_received=stdout_received,
            stderr_received=stderr_received,
        )  # fmt: skip
        return await self._start_job(request, sink)

    async def run(
        self,
        argv: Sequence[bytes],
        *,
        env: Sequence[bytes] = (),
        cwd: bytes | None = b"/",
        user: str = "root",
        stdin: bytes | None = None,
        builtin: str | None = None,
        limit: int = 1 << 20,
        deadline: float = DEFAULT_DEADLINE,
    ) -> Completed:
        """Run a command of our own to its end.

        Args:
            argv: the program, looked up in the machine's PATH, and its arguments.
            env: `NAME=value` entries.
            cwd: where it runs; None: the user's home.
            user: name or number, optionally with `:group`.
            stdin: its input; None: /dev/null.
            builtin: a program of the agent's own in place of `argv[0]`.
            limit: how many bytes of each output are kept: the last ones.
            deadline: seconds after which the command is hung up.

        Raises:
            TimeoutError: the deadline passed.
            ExecError, AgentError: as `exec`.
        """
        sink = CaptureSink(limit)
        request = m.ExecRequest(
            argv=list(argv), env=list(env), cwd=cwd, user=user, stdin=stdin is not None,
            builtin=builtin, label="vmgr",
        )  # fmt: skip
        async with asyncio.timeout(deadline):
            job = await self.exec(request, sink)
            try:
                if stdin is not None:
                    await sink.feed(job, stdin)
                done = await sink.completed()
            except BaseException:
                job.hangup()
                raise
        job.close()
        return done

    async def jobs(self) -> list[m.JobRecord]:
        """Jobs that run in the machine, and those that ended and were not collected yet."""
        return (await self._ask(m.Jobs(), m.JobList)).jobs

    async def signal(self, job: int, number: int) -> None:
        """Send a signal to the process group of any job."""
        await self._ask(m.SignalJob(job=job, signal=number), m.Empty)

    async def forget(self, job: int) -> None:
        """Drop the record of a job that has ended."""
        await self._ask(m.Forget(job=job), m.Empty)

    # -- the machine -------------------------------------------------------------------------------

    async def watch_ports(self) -> list[m.PortListener]:
        """Who listens in the machine; from now on changes come as events (`ports`)."""
        return m.listeners_of((await self._ask(m.WatchPorts(), m.Listening)).listening)

    async def connect_to(
        self, addresses: Sequence[bytes], port: int, sink: JobSink, *, datagrams: bool = False
    ) -> Stream:
        """Connect to one of the machine's ports; see the protocol page.

        Raises:
            AgentError: nobody takes the connection, or the channel is over.
        """
        request = m.Connect(addresses=list(addresses), port=port, datagrams=datagrams)
        return await self._start(request, sink)

    async def answer_call(self, call: int, sink: JobSink) -> Stream:
        """Take a call of a program in the machine (the event `call`).

        Raises:
            AgentError: it waits no more, or the channel is over.
        """
        return await self._start(m.AnswerCall(call=call), sink)

    async def ping(self) -> None:
        """One round trip.

        Raises:
            AgentError: no answer in time, or the channel is over.
        """
        try:
            async with asyncio.timeout(self._deadline):
                await self.room()
                self.session.ping(b"vmgr")
                answer: asyncio.Future[None] = self._loop.create_future()
                self._pongs.append(answer)
                self.flush()
                await answer
        except TimeoutError:
            raise AgentError(
                f"the agent of {self.machine} did not answer within {self._deadline:g} s"
            ) from None

    # -- for jobs ----------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait until the agent is there and has read most of what was sent to it.

        Raises:
            AgentError: the channel is over.
        """
        await self._settled.wait()
        await self._wire.room()
        self._check_open()

    def release(self, number: int) -> None:
        """The sink of that channel hears nothing more."""
        self._sinks.pop(number, None)
        self._jobs.pop(number, None)
        self._asked.pop(number, None)

    def flush(self) -> None:
        """Send what the session has to say, as far as the socket takes it."""
        self._wire.send(self.session.take_output())

    # -- requests ----------------------------------------------------------------------------------

    async def _ask(self, request: m.Request, kind: type[_M], deadline: float | None = None) -> _M:
        _, reply = await self._request(request, deadline)
        assert isinstance(reply, kind)  # noqa: S101 (the session decoded it as the request's reply)
        return reply

    async def _start_job(self, request: m.ExecRequest | m.Attach, sink: JobSink) -> Job:
        job = await self._start(request, sink)
        assert isinstance(job, Job)  # noqa: S101 (the answer to these requests)
        return job

    async def _start(self, request: m.Request, sink: JobSink) -> Stream:
        number, _ = await self._request(request, None, sink)
        job = self._jobs.get(number)
        if job is None:
            # It has failed, and the sink has heard of it, in the turn in which it was opened.
            raise AgentError(f"the command in {self.machine} ended before it was taken over")
        return job

    async def _request(
        self, request: m.Request, deadline: float | None, sink: JobSink | None = None
    ) -> tuple[int, m.Message]:
        limit = self._deadline if deadline is None else deadline
        number = 0
        try:
            async with asyncio.timeout(limit):
                await self.room()
                number = self.session.open(request)
                answer: asyncio.Future[m.Message] = self._loop.create_future()
                self._requests[number] = answer
                self._asked[number] = request
                if sink is not None:
                    self._sinks[number] = sink
                self.flush()
                return number, await answer
        except BaseException as error:
            if number and not self._closed.done():
                self.release(number)
                self.session.abandon(number, hangup=isinstance(request, m.ExecRequest))
                self.flush()
            if isinstance(error, TimeoutError):
                raise AgentError(
                    f"the agent of {self.machine} did not answer within {limit:g} s",
                    next_step=f"see what it does with `vmgr logs {self.machine}`",
                ) from None
            raise
        finally:
            self._requests.pop(number, None)
            if sink is None:
                self._asked.pop(number, None)

    # -- events ------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        self.session.receive(data)
        self._take_events()

    def _take_events(self) -> None:
        """Hand on one turn's share of events; what remains comes after the loop served others."""
        self._turn = None
        for _ in range(_EVENTS_PER_TURN):
            try:
                event = self.session.next_event()
            except ProtocolViolation as violation:
                self._end(f"it broke the protocol: {printable(violation.reason)}")
                return
            if event is None:
                self._wire.resume()
                break
            self._dispatch(event)
            if self._closed.done():
                return
        else:
            self._wire.pause()
            self._turn = self._loop.call_soon(self._take_events)
        self.flush()

    def _dispatch(self, event: e.SessionEvent) -> None:  # noqa: C901, PLR0912 (a table: a line or two per event)
        match event:
            case e.DataReceived(number, flow, data):
                if sink := self._sinks.get(number):
                    sink.data(flow, data)
            case e.CreditReceived(number, acked, limit):
                if sink := self._sinks.get(number):
                    sink.credit(acked, limit)
            case e.FlowEnded(number, flow):
                if sink := self._sinks.get(number):
                    sink.eof(flow)
            case e.Exited(number, result):
                if sink := self._sinks.pop(number, None):
                    sink.exit(result)
            case e.Opened(number, reply):
                self._opened(number, reply)
            case e.RequestFailed(number, failure):
                self._refused(number, failure)
            case e.EventReceived(happened):
                self._on_event(happened)
            case e.Pong():
                answer = self._pongs.popleft()
                if not answer.done():
                    answer.set_result(None)
            case e.HelloReceived(hello):
                self._greeted(hello)

    def _opened(self, number: int, reply: m.Message) -> None:
        answer = self._requests.get(number)
        sink = self._sinks.get(number)
        if sink is not None and isinstance(reply, m.Started | m.Attached):
            job = self._jobs[number] = Job(self, number, reply)
            sink.started(job)
        elif sink is not None and isinstance(reply, m.Connected):
            self._jobs[number] = Stream(self, number)
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def _refused(self, number: int, failure: m.Failure) -> None:
        answer = self._requests.get(number)
        sink = self._sinks.get(number)
        request = self._asked.get(number)
        opened = number in self._jobs
        self.release(number)
        if request is None:
            return
        error = to_error(failure, request, self.machine, opened=opened)
        if answer is not None and not answer.done():
            answer.set_exception(error)
        elif sink is not None:
            sink.failed(error)

    def _greeted(self, hello: m.AgentHello) -> None:
        if hello.version == 0:
            self._end(
                f"it is of version {printable(hello.agent)} and shares no protocol with this helper"
            )
            return
        if not self._hello.done():
            self._hello.set_result(hello)
        self._confirming = self._loop.create_task(self._confirm(), name="confirm agent key")

    async def _confirm(self) -> None:
        try:
            await self._keys.confirm(self._key)
        except VmgrError as error:
            # Harmless: the next connection tries one key more.
            self._logger.warning("%s: its agent key was not confirmed: %s", self.machine, error)
        finally:
            self._settled.set()

    # -- the end -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed.done():
            raise self._error(self._closed.result())

    @staticmethod
    def _error(reason: AgentError) -> AgentError:
        """A fresh copy: an exception that is raised twice collects both tracebacks."""
        return AgentError(reason.message, next_step=reason.next_step, details=reason.details)

    def _end(self, why: str) -> None:
        """Close the socket and tell everybody who waits. Does nothing a second time."""
        if self._closed.done():
            return
        reason = AgentError(
            f"lost the agent of {self.machine}: {why}",
            next_step=f"see `vmgr logs {self.machine}`",
        )
        self._closed.set_result(reason)
        self._logger.info("%s", reason.message)
        self._settled.set()
        self._wire.close()
        if self._turn is not None:
            self._turn.cancel()
        if not self._hello.done():
            self._hello.set_exception(self._error(reason))
            self._hello.exception()  # seen: nobody has to wait for the hello
        waiting: list[asyncio.Future[Any]] = [*self._requests.values(), *self._pongs]
        sinks = [sink for number, sink in self._sinks.items() if number in self._jobs]
        self._requests.clear()
        self._sinks.clear()
        self._jobs.clear()
        self._asked.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(self._error(reason))
                future.exception()  # seen: whoever waited may have been cancelled meanwhile
        for sink in sinks:
            sink.failed(self._error(reason))
