"""The channel with the real agent, which serves this host as an ordinary process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pwd
import random
import select
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.agent import messages as m
from vmgr.agent.channel import AgentChannel
from vmgr.agent.flows import OUTPUT_WINDOW
from vmgr.agent.frames import STDERR, STDOUT
from vmgr.agent.keys import MemoryKeyStore
from vmgr.agent_binary import find_agent
from vmgr.errors import AgentError, ConflictError, ExecError, NotFoundError

from .conftest import LOGGER, Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

ME = pwd.getpwuid(os.getuid()).pw_name
PATH = b"PATH=/usr/bin:/bin"


class Agent:
    """The real program, listening; every connection of a test goes through `connect`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = MemoryKeyStore()
        self.channels: list[AgentChannel] = []

    async def connect(self, sock: socket.socket | None = None) -> AgentChannel:
        options: dict[str, Any] = {
            "machine": "box", "host_version": "test", "on_event": lambda _: None, "logger": LOGGER,
        }  # fmt: skip
        if sock is None:
            channel = await AgentChannel.connect(self.path, self.keys, **options)
        else:
            channel = await AgentChannel.over(sock, self.keys, **options)
        self.channels.append(channel)
        async with asyncio.timeout(30):
            await channel.hello()
        return channel


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    """The path of its socket."""
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(
        [find_agent(), "--serve", path], stdin=subprocess.DEVNULL, start_new_session=True
    )
    wait_for_socket(path)
    yield path
    process.send_signal(signal.SIGKILL)
    process.wait()


def wait_for_socket(path: Path) -> None:
    """Wait until somebody listens: the directory's inotify would race, connecting does not."""
    for _ in range(10_000):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(os.fspath(path))
            except OSError:
                select.select([], [], [], 0.001)
            else:
                return
    raise AssertionError("the agent does not listen")


@pytest.fixture
async def agent(program: Path) -> AsyncIterator[Agent]:
    agent = Agent(program)
    yield agent
    channel = agent.channels[-1] if agent.channels else await agent.connect()
    if channel.closed:
        channel = await agent.connect()
    for job in await channel.jobs():
        if job.exit is None:
            with contextlib.suppress(NotFoundError):  # it has just ended
                await channel.signal(job.job, signal.SIGKILL)
    for channel in agent.channels:
        await channel.aclose()


def command(*argv: str, **fields: Any) -> m.ExecRequest:
    return m.ExecRequest(
        argv=[a.encode() for a in argv], user=ME, **{"env": [PATH], "cwd": b"/", **fields}
    )


async def ended(sink: Recorder) -> Recorder:
    async with asyncio.timeout(60):
        await sink.ended.wait()
    assert sink.error is None
    return sink


# -- commands --------------------------------------------------------------------------------------


async def test_hello(agent: Agent) -> None:
    channel = await agent.connect()
    hello = await channel.hello()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: ASYNC230, PTH123 (a line)
        assert hello.boot_id == file.read().strip()
    assert hello.kernel == os.uname().release
    assert hello.jobs == []
    await channel.ping()


async def test_output_errors_and_exit_code(agent: Agent) -> None:
    channel = await agent.connect()
    sink = Recorder()
    job = await channel.exec(command("sh", "-c", "echo out; echo err >&2; exit 3"), sink)
    await ended(sink)
    assert bytes(sink.received[STDOUT]) == b"out\n"
    assert bytes(sink.received[STDERR]) == b"err\n"
    assert sink.result == m.JobExit(code=3)
    assert {entry for entry in sink.log if entry[0] == "eof"} <= {("eof", 1), ("eof", 2)}
    job.close()
    assert await channel.jobs() == []


async def test_a_signal_as_the_end(agent: Agent) -> None:
    channel = await agent.connect()
    sink = Recorder()
    job = await channel.exec(command("sleep", "1000"), sink)
    job.signal(signal.SIGTERM)
    await ended(sink)
    assert sink.result is not None
    assert (sink.result.code, sink.result.signal) == (None, signal.SIGTERM)


async def test_arguments_and_environment_are_bytes(agent: Agent) -> None:
    channel = await agent.connect()
    request = m.ExecRequest(
        argv=[b"sh", b"-c", b'printf %s "$1$X"; pwd', b"sh", b"\xff\xfe,"],
        env=[PATH, b"X=\xfd"], cwd=b"/usr", user=ME,
    )  # fmt: skip
    sink = Recorder()
    await channel.exec(request, sink)
    await ended(sink)
    assert bytes(sink.received[STDOUT]) == b"\xff\xfe,\xfd/usr\n"


@pytest.mark.parametrize(
    ("request_", "exit_code", "sentence"),
    [
        (command("no-such-thing"), 127, "the command no-such-thing was not found in box"),
        (command("/etc"), 126, "the command /etc in box cannot be executed"),
        (command("true", cwd=b"/gone"), 125, "there is no directory /gone in box"),
        (
            m.ExecRequest(argv=[b"true"], env=[PATH], user="nobody-here"),
            125,
            "there is no user nobody-here in box",
        ),
    ],
)
async def test_commands_that_cannot_be_started(
    agent: Agent, request_: m.ExecRequest, exit_code: int, sentence: str
) -> None:
    channel = await agent.connect()
    with pytest.raises(ExecError) as caught:
        await channel.exec(request_, Recorder())
    assert caught.value.message.startswith(sentence)
    assert caught.value.exit_code == exit_code
    assert await channel.jobs() == []


async def test_stdin_and_its_end(agent: Agent) -> None:
    channel = await agent.connect()
    done = await channel.run([b"sort"], user=ME, stdin=b"b\na\nc\n")
    assert (done.ok, done.stdout) == (True, b"a\nb\nc\n")
    done = await channel.run([b"cat"], user=ME)
    assert (done.ok, done.stdout) == (True, b"")


async def test_a_terminal(agent: Agent) -> None:
    channel = await agent.connect()
    sink = Recorder()
    script = "stty size; trap 'stty size; exit 7' WINCH; tty; while :; do sleep 0.1; done"
    request = command("sh", "-c", script, tty=m.TerminalSize(rows=33, cols=99), stdin=True)
    job = await channel.exec(request, sink)
    await sink.until(lambda: b"/dev/pts/" in sink.received[STDOUT])
    assert sink.received[STDOUT].startswith(b"33 99\r\n")
    job.resize(44, 111)
    await ended(sink)
    assert sink.received[STDOUT].endswith(b"44 111\r\n")
    assert sink.result == m.JobExit(code=7)


async def test_ctrl_c_on_a_terminal(agent: Agent) -> None:
    channel = await agent.connect()
    sink = Recorder()
    request = command("cat", tty=m.TerminalSize(rows=24, cols=80), stdin=True)
    job = await channel.exec(request, sink)
    await job.send_stdin(b"on\n")
    await sink.until(lambda: sink.received[STDOUT] == b"on\r\non\r\n")
    await job.send_stdin(b"\x03")
    await ended(sink)
    assert sink.result == m.JobExit(signal=signal.SIGINT)


async def test_a_consumer_that_goes_takes_its_command_with_it(agent: Agent) -> None:
    channel = await agent.connect()
    sink = Recorder()
    job = await channel.exec(command("sleep", "1000"), sink)
    descriptor = os.pidfd_open(job.pid)
    job.hangup()
    ready, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], 30)
    os.close(descriptor)
    assert ready
    assert sink.log[0] == ("started", job.id)
    assert {entry[0] for entry in sink.log[1:]} <= {"credit"}


async def test_jobs_listed_signalled_forgotten(agent: Agent) -> None:
    channel = await agent.connect()
    sink = Recorder()
    job = await channel.exec(command("sleep", "1000", label="nap"), sink)
    [record] = await channel.jobs()
    assert (record.job, record.pid, record.label, record.attached) == (job.id, job.pid, "nap", True)
    assert (record.argv, record.user, record.exit) == ([b"sleep", b"1000"], ME, None)
    with pytest.raises(ConflictError, match="still running"):
        await channel.forget(job.id)
    await channel.signal(job.id, signal.SIGKILL)
    await ended(sink)
    [record] = await channel.jobs()
    assert record.exit is not None
    assert record.exit.signal == signal.SIGKILL
    await channel.forget(job.id)
    with pytest.raises(NotFoundError):
        await channel.forget(job.id)
    with pytest.raises(NotFoundError):
        await channel.attach(job.id, Recorder())


# -- streams ---------------------------------------------------------------------------------------


async def test_much_data_through_a_command(agent: Agent) -> None:
    """100 MB in and out again, byte for byte, within the windows."""
    channel = await agent.connect()
    block = random.Random(1).randbytes(1 << 20)  # noqa: S311 (data for a test)
    total = 100
    sink = Recorder(window=OUTPUT_WINDOW)
    expected = hashlib.sha256()
    seen = hashlib.sha256()
    count = 0

    class Hashing(Recorder):
        def data(self, flow: int, data: bytes) -> None:
            nonlocal count
            count += len(data)
            seen.update(data)
            assert self.job is not None
            self.job.grant(flow, count, count + OUTPUT_WINDOW)

    sink = Hashing()
    job = await channel.exec(command("cat", stdin=True), sink)
    for _ in range(total):
        expected.update(block)
        at = 0
        while at < len(block):
            size = min(job.stdin_room, 32_768, len(block) - at)
            if not size:
                sink.changed.clear()
                await sink.changed.wait()
                continue
            await job.send_stdin(block[at : at + size])
            at += size
    job.close_stdin()
    await ended(sink)
    assert count == total << 20
    assert seen.digest() == expected.digest()
    assert sink.result == m.JobExit(code=0)


async def test_a_reader_that_does_not_read_blocks_nobody(agent: Agent) -> None:
    channel = await agent.connect()
    stuck = Recorder()
    await channel.exec(command("yes"), stuck)
    await stuck.until(lambda: len(stuck.received[STDOUT]) == 65_536)
    for _ in range(5):
        done = await channel.run([b"seq", b"100000"], user=ME)
        assert len(done.stdout) == 588_895
    assert len(stuck.received[STDOUT]) == 65_536
    assert stuck.job is not None
    stuck.job.hangup()


async def test_another_client_takes_over(agent: Agent) -> None:
    channel = await agent.connect()
    first, second = Recorder(), Recorder()
    job = await channel.exec(command("cat", stdin=True), first)
    await job.send_stdin(b"one")
    await first.until(lambda: len(first.received[STDOUT]) == 3)
    other = await channel.attach(job.id, second, stdin_sent=3, stdout_received=1)
    await first.ended.wait()
    assert isinstance(first.error, ConflictError)
    assert (other.id, other.stdin_received, other.stdout_from) == (job.id, 3, 1)
    await other.send_stdin(b"two")
    other.close_stdin()
    await ended(second)
    assert bytes(second.received[STDOUT]) == b"netwo"


async def test_a_detached_job_goes_on_and_can_be_collected(agent: Agent) -> None:
    channel = await agent.connect()
    job = await channel.exec(command("sh", "-c", "read x; echo got $x", stdin=True), Recorder())
    await job.send_stdin(b"it\n")
    job.detach()
    channel.close()
    channel = await agent.connect()
    sink = Recorder()
    again = await channel.attach(job.id, sink, stdin_sent=3)
    await ended(sink)
    assert bytes(sink.received[STDOUT]) == b"got it\n"
    again.close()
    assert await channel.jobs() == []


# -- the helper dies -------------------------------------------------------------------------------


class CutSocket:
    """A relay between a channel and the agent that dies after a number of bytes, either way."""

    def __init__(self, path: Path, up: int, down: int) -> None:
        self.ours, theirs = socket.socketpair()
        agent = socket.socket(socket.AF_UNIX)
        agent.connect(os.fspath(path))
        self._ends = (theirs, agent)
        self._left = {theirs: up, agent: down}
        for end in self._ends:
            end.settimeout(0)
        self.tasks = [
            asyncio.create_task(self._relay(theirs, agent)),
            asyncio.create_task(self._relay(agent, theirs)),
        ]

    async def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, 16_384):
                part = data[: self._left[source]]
                self._left[source] -= len(part)
                await loop.sock_sendall(sink, part)
                if not self._left[source]:
                    break
        except OSError:
            pass
        self.cut()

    def cut(self) -> None:
        loop = asyncio.get_running_loop()
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for end in self._ends:
            if end.fileno() < 0:
                continue
            loop.remove_reader(end)
            loop.remove_writer(end)
            end.close()


@pytest.mark.parametrize("seed", range(8))
async def test_streams_survive_cuts_at_any_byte(agent: Agent, seed: int) -> None:
    """A command's input and output, cut some twenty times: all bytes, once, in order."""
    chance = random.Random(seed)  # noqa: S311 (chances of a test)
    data = chance.randbytes(3_000_000)
    received = bytearray()
    number = sent = 0
    cuts = 0
    finished = False
    while not finished:
        cuts += 1
        # The last connections are left alone, so that it ends.
        up, down = (chance.choice([chance.randrange(1, 400), chance.randrange(1, 400_000)])
                    for _ in range(2)) if cuts < 24 else (1 << 30, 1 << 30)  # fmt: skip
        link = CutSocket(agent.path, up, down)
        sink = Recorder(window=OUTPUT_WINDOW)
        try:
            channel = await agent.connect(link.ours)
            if not number:
                number = await first_job(channel, sink)
            if sink.job is None:
                await channel.attach(number, sink, stdin_sent=sent, stdout_received=len(received))
            job = sink.job
            assert job is not None
            assert job.stdout_from == len(received)
            sent = job.stdin_received
            feeding = asyncio.create_task(feed(sink, data, sent, len(received)))
            async with asyncio.timeout(60):
                await sink.ended.wait()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            finished = sink.result is not None
        except AgentError:
            pass
        finally:
            link.cut()
            await asyncio.gather(*link.tasks, return_exceptions=True)
            agent.channels.pop().close()
        received += sink.received[STDOUT]
        assert received == data[: len(received)]
    assert bytes(received) == data
    assert cuts > 5


async def first_job(channel: AgentChannel, sink: Recorder) -> int:
    """Start the command, or find it: an earlier connection may have died behind its start."""
    jobs = await channel.jobs()
    if jobs:
        return jobs[0].job
    job = await channel.exec(command("cat", stdin=True), sink)
    return job.id


async def feed(sink: Recorder, data: bytes, at: int, received: int) -> None:
    """Send from `at` on, as far as there is credit and the answer comes back.

    While nobody is attached the agent keeps a window of output and drops what is beyond it; so no
    more than that is under way.
    """
    job = sink.job
    assert job is not None
    while at < len(data):
        under_way = at - received - len(sink.received[STDOUT])
        size = min(job.stdin_room, len(data) - at, 32_768, OUTPUT_WINDOW - under_way)
        if size <= 0:
            sink.changed.clear()
            await sink.changed.wait()
            continue
        await job.send_stdin(data[at : at + size])
        at += size
    job.close_stdin()


async def test_a_helper_that_died_again_and_again_before_its_hello(agent: Agent) -> None:
    chance = random.Random(7)  # noqa: S311 (chances of a test)
    for _ in range(25):
        link = CutSocket(agent.path, chance.randrange(1, 300), 1 << 30)
        channel = await AgentChannel.over(
            link.ours, agent.keys, machine="box", host_version="test", on_event=lambda _: None,
            logger=LOGGER,
        )  # fmt: skip
        await asyncio.wait([asyncio.create_task(channel.wait_closed())], timeout=0.02)
        link.cut()
        await asyncio.gather(*link.tasks, return_exceptions=True)
        await channel.aclose()
    assert len(agent.keys.keys) <= 16
    channel = await agent.connect()
    await channel.ping()


async def test_one_client_after_another_and_no_fd_is_left(agent: Agent) -> None:
    count: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731, PTH208 (counting)
    channel = await agent.connect()
    await channel.aclose()
    before = count()
    for _ in range(20):
        channel = await agent.connect()
        await channel.ping()
        await channel.aclose()
    assert count() == before
