"""A process below a monitor. The monitor here is a shell that waits, as bubblewrap's does."""

from __future__ import annotations

import asyncio
import os
import signal

from vmgr.spawner import Contained, ExitStatus, Process, StopPolicy, spawn

# Waits for what it starts and passes its end on. Its number is told by itself, and only when its
# tie to the monitor holds: a monitor that is killed before leaves it (docs/footguns.md).
MONITOR = """setpriv --pdeathsig KILL -- sh -c 'echo $$; exec "$@"' told "$@" & wait $!"""


async def contained(*argv: str) -> tuple[Process, Contained]:
    read, write = os.pipe()
    monitor = await spawn(["bash", "-c", MONITOR, "monitor", *argv], stdout=write)
    os.close(write)
    readable = asyncio.Event()
    asyncio.get_running_loop().add_reader(read, readable.set)
    await readable.wait()
    asyncio.get_running_loop().remove_reader(read)
    process = Contained.under(monitor, int(os.read(read, 100)))
    os.close(read)
    assert process is not None
    return monitor, process


async def test_its_exit_code_is_passed_on() -> None:
    monitor, process = await contained("sh", "-c", "read line <&2; exit 7")
    assert process.pid != monitor.pid
    assert await process.wait() == ExitStatus(code=7)
    assert not monitor.running


async def test_a_signal_reaches_the_process_and_is_told_as_one() -> None:
    monitor, process = await contained("sleep", "100")
    assert await process.stop() == ExitStatus(signal=signal.SIGTERM)
    assert not process.running
    assert not monitor.running


async def test_one_that_is_not_asked_is_killed() -> None:
    _, process = await contained("sleep", "100")
    assert await process.stop(StopPolicy(ask=None)) == ExitStatus(signal=signal.SIGKILL)


async def test_a_killed_monitor_takes_it_along() -> None:
    monitor, process = await contained("sleep", "100")
    os.kill(monitor.pid, signal.SIGKILL)
    assert await process.wait() == ExitStatus(signal=signal.SIGKILL)


async def test_a_monitor_that_hangs_does_not_hide_the_end() -> None:
    monitor, process = await contained("sleep", "100")
    os.kill(monitor.pid, signal.SIGSTOP)
    process.kill()
    status = await process.wait()  # the monitor is killed after a while
    assert status == ExitStatus(signal=signal.SIGKILL)


async def test_another_process_of_that_number_is_not_taken_for_it() -> None:
    monitor, process = await contained("sleep", "100")
    assert Contained.under(monitor, os.getpid()) is None
    assert Contained.under(monitor, 2**22 - 1) is None
    process.kill()
    await process.wait()


async def test_its_number_is_let_go_with_it() -> None:
    """What is signalled late must not be an fd, and so a process, of another."""
    _, process = await contained("sleep", "100")
    process.kill()
    await process.wait()
    other = await spawn(["sleep", "100"])  # gets the fd's number
    process.signal(signal.SIGKILL)
    process.kill()
    assert other.running
    assert await other.stop() == ExitStatus(signal=signal.SIGTERM)
