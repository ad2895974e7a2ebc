"""Real commands on this computer, with pipes and with a terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from vmgr.agent.frames import STDERR, STDOUT
from vmgr.hostcommands.conversation import Size
from vmgr.hostcommands.running import Running
from vmgr.userenv import Person

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    person = Person("/bin/sh")
    started: list[Running] = []

    async def make(*argv: str, size: Size | None = None, cwd: str | None = None) -> Running:
        running = await Running.start(person, argv, cwd=cwd, extra={"EXTRA": "yes"}, size=size)
        started.append(running)
        return running

    yield make
    for running in started:
        await running.close()


async def all_of(running: Running, flow: int = STDOUT) -> bytes:
    parts = []
    while part := await running.read(flow, 32_768):
        parts.append(part)
    return b"".join(parts)


async def test_streams_and_code(start: Start) -> None:
    running = await start("/bin/sh", "-c", 'cat; echo "$EXTRA" >&2; exit 7')
    running.write(b"a" * 200_000)
    running.end_input()
    out, err = await asyncio.gather(all_of(running), all_of(running, STDERR))
    assert (out, err) == (b"a" * 200_000, b"yes\n")
    assert (await running.wait()).code == 7
    assert running.taken == 200_000


async def test_it_leads_a_session_without_our_fds(start: Start) -> None:
    script = (
        "import os; print(os.getsid(0) == os.getpid(), sorted(int(n) for n in "
        "os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)))"
    )
    running = await start(sys.executable, "-c", script)
    running.end_input()
    assert await all_of(running) == b"True [0, 1, 2]\n"


async def test_input_that_nobody_reads_is_taken(start: Start) -> None:
    running = await start("/bin/sh", "-c", "exec <&-; echo closed; exec sleep 1000")
    assert await running.read(STDOUT, 100) == b"closed\n"
    running.write(b"x" * 500_000)
    while running.taken < 500_000:
        running.on_taken.clear()
        await running.on_taken.wait()


async def test_what_it_leaves_behind_does_not_hold_its_end(start: Start) -> None:
    running = await start("/bin/sh", "-c", "sleep 1000 & echo $!")
    out = await all_of(running)
    assert (await running.wait()).code == 0
    os.kill(int(out), signal.SIGKILL)


async def test_a_terminal(start: Start) -> None:
    size = Size(rows=33, cols=77)
    running = await start("/bin/sh", "-c", "stty size; tty; exec cat </dev/tty", size=size)
    out = b""
    while b"/dev/pts/" not in out:
        out += await running.read(STDOUT, 1_000)
    assert out.startswith(b"33 77\r\n")
    running.resize(Size(rows=10, cols=20))
    running.write(b"\x03")  # Ctrl-C, which a terminal of its own makes a signal of
    assert (await running.wait()).signal == signal.SIGINT


async def test_a_terminals_arguments_are_read_by_no_shell(start: Start) -> None:
    running = await start("/bin/echo", "$(id)", "`id`", ";x", "*", size=Size(rows=1, cols=80))
    out = b""
    while part := await running.read(STDOUT, 1_000):
        out += part
    assert out == b"$(id) `id` ;x *\r\n"


async def test_whoever_called_has_gone(start: Start) -> None:
    running = await start("/bin/sh", "-c", "echo here; exec sleep 1000")
    assert await running.read(STDOUT, 100) == b"here\n"
    await running.close()
    assert (await running.wait()).signal == signal.SIGHUP


async def test_signals_reach_the_group(start: Start) -> None:
    script = "trap 'echo got; exit 4' USR1; echo ready; while :; do sleep 0.02; done"
    running = await start("/bin/sh", "-c", script)
    assert await running.read(STDOUT, 100) == b"ready\n"
    running.signal(signal.SIGUSR1)
    # The group's `sleep` ends by it too.
    assert (await running.wait()).code == 4
