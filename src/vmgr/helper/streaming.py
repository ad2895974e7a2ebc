"""The API's streams: jobs, logs, events, image work. See `vmgr.api.streams` for the messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from vmgr.api import models as m
from vmgr.api import streams
from vmgr.api.hostcommands import Answer
from vmgr.api.snapshots import SnapshotExport, SnapshotImport
from vmgr.errors import StateError, UsageError, VmgrError
from vmgr.helper.ephemeral import EphemeralRun
from vmgr.helper.logtail import tail_file
from vmgr.helper.relay import JobRelay, RelayEnd
from vmgr.helper.server import Call, error_body, receive_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from aiohttp import web

    from vmgr.helper.helper import Helper

__all__ = ["Streaming", "job_number", "progress_to", "while_connected"]

FIRST_MESSAGE_DEADLINE: Final = 10.0
_U32_DIGITS: Final = 10
_OFFSET_MAX: Final = 1 << 62  # see docs/agent-protocol.md
T = TypeVar("T")

log = logging.getLogger(__name__)


class Streaming:
    """The stream operations of the API."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    # -- jobs -------------------------------------------------------------------------------

    async def exec(self, call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            start = await _first(socket, streams.Start)
            machine = self._helper.machines.get(call.path["machine"])
            relay = JobRelay(socket, detached=start.spec.detached, machine=machine)
            with machine.used():
                job = await self._helper.machines.exec(machine, start.spec, relay)
            with machine.used():
                await self._relay(relay, job, streams.Started(machine=machine.name, job=job.id))

    async def attach(self, call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            offsets = await _first(socket, streams.Attach)
            received = (offsets.stdin_sent, offsets.stdout_received, offsets.stderr_received)
            if not all(0 <= offset <= _OFFSET_MAX for offset in received):
                raise UsageError("an offset is not one of a stream")
            machine = self._helper.machines.get(call.path["machine"])
            relay = JobRelay(socket, machine=machine)
            channel = await self._helper.machines.channel(machine)
            job = await channel.attach(
                job_number(call),
                relay,
                stdin_sent=offsets.stdin_sent,
                stdout_received=offsets.stdout_received,
                stderr_received=offsets.stderr_received,
            )
            started = streams.Started(
                machine=machine.name,
                job=job.id,
                stdin_received=job.stdin_received,
                stdout_from=job.stdout_from,
                stderr_from=job.stderr_from,
            )
            # Other commands in it end alone: `exec` and ssh sessions that come back, say.
            if machine.row.ephemeral and machine.row.run_job in {None, job.id}:
                await EphemeralRun(self._helper, socket).attached(machine, relay, job, started)
            else:
                with machine.used():
                    await self._relay(relay, job, started)

    async def run(self, _call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            request = await _first(socket, streams.Run)
            await EphemeralRun(self._helper, socket).run(request)

    async def _relay(self, relay: JobRelay, job: Any, started: streams.Started) -> RelayEnd:
        return await relay.run(job, started)

    # -- images -------------------------------------------------------------------------------

    async def image_build(self, _call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            request = await _first(socket, m.ImageBuild)
            await self._image_work(
                socket, lambda progress: self._helper.images.build(request, progress)
            )

    async def image_import(self, _call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            request = await _first(socket, m.ImageImport)
            await self._image_work(
                socket, lambda progress: self._helper.images.import_tarball(request, progress)
            )

    async def template_build(self, _call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            request = await _first(socket, m.CreateMachine)
            await self._image_work(
                socket, lambda progress: self._helper.machines.build_template(request, progress)
            )

    async def snapshot_export(self, _call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            request = await _first(socket, SnapshotExport)
            archives = self._helper.snapshots.archives
            await self._image_work(socket, lambda progress: archives.export(request, progress))

    async def snapshot_import(self, _call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            request = await _first(socket, SnapshotImport)
            archives = self._helper.snapshots.archives
            await self._image_work(socket, lambda progress: archives.import_(request, progress))

    async def _image_work(
        self,
        socket: web.WebSocketResponse,
        work: Callable[
            [Callable[[str, float | None], None]],
            Coroutine[Any, Any, m.Model],
        ],
    ) -> None:
        async with progress_to(socket) as progress:
            info = await while_connected(socket, work(progress))
        if info is not None:
            await socket.send_str(streams.encode_message(streams.Done(result=info)))

    # -- logs and events ----------------------------------------------------------------------

    async def machine_logs(self, call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            machine = self._helper.machines.get(call.path["machine"])
            source = call.query["source"]
            match source:
                case "console":
                    path, marker = machine.paths.console_log, None
                case "vmm":
                    path, marker = machine.paths.vmm_log, None
                case "helper":
                    path = self._helper.paths.helper_log
                    marker = re.compile(rb"\bmachine %b(?![\w.-])" % machine.name.encode())
                case _:
                    raise UsageError(
                        f"there is no log {source!r}", next_step="take console, vmm or helper"
                    )
            await self._send_log(socket, tail_file(
                path, lines=call.query["tail"], follow=call.query["follow"], containing=marker,
                in_thread=self._helper.executors.in_files,
            ))  # fmt: skip

    async def helper_logs(self, call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            await self._send_log(socket, tail_file(
                self._helper.paths.helper_log, lines=call.query["tail"],
                follow=call.query["follow"], in_thread=self._helper.executors.in_files,
            ))  # fmt: skip

    async def _send_log(self, socket: web.WebSocketResponse, chunks: AsyncIterator[bytes]) -> None:
        async def send() -> None:
            try:
                async for chunk in chunks:
                    for start in range(0, len(chunk), streams.MAX_DATA):
                        part = chunk[start : start + streams.MAX_DATA]
                        await socket.send_bytes(bytes((streams.STDOUT,)) + part)
            except ConnectionError:
                raise
            except OSError as error:  # its machine is being removed; no inotify watch is left
                raise StateError(
                    f"the log cannot be read: {error.strerror}", next_step="try again"
                ) from error

        await while_connected(socket, send())

    async def events(self, call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):

            async def send() -> None:
                async for event in self._helper.events.follow(call.query["since"]):
                    await socket.send_str(msgspec.json.encode(event).decode())

            await while_connected(socket, send())

    # -- questions ----------------------------------------------------------------------------

    async def authorize(self, call: Call, socket: web.WebSocketResponse) -> None:
        async with self._reporting(socket):
            if (machine := call.query["machine"]) is not None:
                self._helper.machines.get(machine)
            authorization = self._helper.authorization
            with authorization.listening(machine) as listener:

                async def send() -> None:
                    while True:
                        news = await listener.next()
                        await socket.send_str(msgspec.json.encode(news).decode())

                sending = asyncio.create_task(send(), name="questions to a client")
                try:
                    while (text := await receive_text(socket)) is not None:
                        try:
                            said = msgspec.json.decode(text, type=Answer)
                        except msgspec.MsgspecError as error:
                            raise UsageError(f"the answer is not acceptable: {error}") from None
                        authorization.answer(said.id, allow=said.allow)
                finally:
                    await _end(sending)

    # -- machinery ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _until_helper_stops(self) -> AsyncIterator[None]:
        """Cancel the stream when the helper stops: that waits for nothing that runs in machines."""
        stream = asyncio.current_task()
        assert stream is not None  # noqa: S101 (handlers are tasks)
        stop = asyncio.create_task(self._helper.stopping.wait(), name="stream: helper stops")
        stop.add_done_callback(lambda task: None if task.cancelled() else stream.cancel())
        try:
            yield
        finally:
            stop.cancel()

    @contextlib.asynccontextmanager
    async def _reporting(self, socket: web.WebSocketResponse) -> AsyncIterator[None]:
        """Tell the client of an error as `Failed`; what nobody expected is fatal."""
        try:
            async with self._until_helper_stops():
                yield
        except VmgrError as error:
            with contextlib.suppress(ConnectionError):
                await socket.send_str(
                    streams.encode_message(streams.Failed(error=error_body(error)))
                )
        except ConnectionError:
            return
        except Exception as error:
            self._helper.fatal(error)
            raise


async def _first(socket: web.WebSocketResponse, kind: type[T]) -> T:
    """The client's first message.

    Raises:
        UsageError: it is something else, or does not come.
    """
    try:
        async with asyncio.timeout(FIRST_MESSAGE_DEADLINE):
            text = await receive_text(socket)
    except TimeoutError:
        raise UsageError("the stream's first message did not come") from None
    if text is None:
        raise ConnectionResetError
    try:
        if issubclass(kind, m.Model):
            return msgspec.json.decode(text, type=kind)
        message = streams.decode_from_client(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"the stream's first message is not acceptable: {error}") from None
    if not isinstance(message, kind):
        raise UsageError(f"the stream's first message is {kind.__name__}")
    return message


@contextlib.asynccontextmanager
async def progress_to(
    socket: web.WebSocketResponse,
) -> AsyncIterator[Callable[[str, float | None], None]]:
    """Give a function whose reports reach the client in order; of a burst only the last matters."""
    latest: list[streams.Progress] = []
    wake = asyncio.Event()

    def progress(message: str, fraction: float | None) -> None:
        # A new step is kept besides the last; more of the same step replaces it.
        if latest and latest[-1].message == message:
            latest.pop()
        latest.append(streams.Progress(message=message[:500], fraction=fraction))
        del latest[:-20]
        wake.set()

    async def send() -> None:
        while True:
            await wake.wait()
            wake.clear()
            while latest:
                await socket.send_str(streams.encode_message(latest.pop(0)))

    sending = asyncio.create_task(send(), name="progress to client")
    try:
        yield progress
    finally:
        await _end(sending)
        with contextlib.suppress(ConnectionError):
            for message in latest:
                await socket.send_str(streams.encode_message(message))


async def while_connected(socket: web.WebSocketResponse, work: Coroutine[Any, Any, T]) -> T | None:
    """Do `work`; when the client goes first, cancel it, await its clean-up and give None."""
    working = asyncio.create_task(work, name="work for a client")
    watching = asyncio.create_task(_gone(socket), name="client goes")
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return None
        return working.result()
    finally:
        await _end(working, watching)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and await their clean-up.

    That a client has gone, or that what it began could not be undone in full, is no crash: without
    a look at it, the loop takes the error of a task that nobody awaits for one.
    """
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if task.cancelled() or (error := task.exception()) is None:
            continue
        if not isinstance(error, VmgrError | ConnectionError):
            raise error
        log.info("%s: ended with: %s", task.get_name(), error)


async def _gone(socket: web.WebSocketResponse) -> None:
    """Wait until the client has gone; what it says meanwhile is not for now."""
    with contextlib.suppress(UsageError):
        while await receive_text(socket) is not None:
            pass


def job_number(call: Call) -> int:
    """The job that the URL names."""
    text = call.path["job"]
    if not text.isascii() or not text.isdigit() or len(text) > _U32_DIGITS or int(text) >= 1 << 32:
        raise UsageError(f"{text!r} is not a job's number", next_step="see: vmgr jobs NAME")
    return int(text)
