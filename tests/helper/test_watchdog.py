"""The watchdog of the event loop: what it must see, and what it must let pass."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from vmgr.helper.watchdog import MESSAGE

RUN = """
import asyncio, logging, os, shutil, socket, sqlite3, time
from vmgr.helper import watchdog

async def main():
    watchdog.install()
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)  # the callback in which it was installed is not watched yet
{body}

logging.basicConfig(format="%(message)s")
asyncio.run(main())
"""


def told(body: str) -> list[str]:
    """What the watchdog says of a program; in a process of its own, since it stays for good."""
    source = RUN.format(body=textwrap.indent(body, "    "))
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    return [line for line in done.stderr.splitlines() if MESSAGE in line]


@pytest.mark.parametrize(
    "body",
    [
        "end = time.thread_time() + 0.08\nwhile time.thread_time() < end: pass",
        "sqlite3.connect(':memory:').close()",
        "socket.getaddrinfo('127.0.0.1', 1)",
        "os.listdir('/tmp')",
        "loop.call_soon(os.listdir, '/tmp')\nawait asyncio.sleep(0.01)",
        "shutil.rmtree('/nonexistent', ignore_errors=True)",
    ],
)
def test_what_holds_the_loop_is_seen(body: str) -> None:
    assert told(body)


@pytest.mark.parametrize(
    "body",
    [
        "await asyncio.sleep(0.2)",
        "await asyncio.to_thread(time.sleep, 0.1)",
        "await asyncio.to_thread(os.listdir, '/tmp')",
        "os.listdir('/proc/self/fd')",
        "import xml.etree.ElementTree",
        # Waiting for others on the CPU is not this thread's doing.
        "await asyncio.to_thread(sum, range(3_000_000))",
    ],
)
def test_what_does_not_hold_it_passes(body: str) -> None:
    assert told(body) == []
