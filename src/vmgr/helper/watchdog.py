"""For tests: tells when a callback holds the event loop, which nothing may for over 50 ms.

Switched on by `VMGR_LOOP_WATCHDOG=1` in the helper's environment; the tests' fixtures set it, and
fail a test whose helper's log has what is told here. Two things are looked for, neither of which
depends on how busy the computer is, as wall-clock time would:

- **CPU time** of the loop's thread in one callback: waiting for a turn on the CPU does not count.
- **Calls that wait** for a disk or a name server, on the loop's thread, however quick they were
  this time: opening a database, resolving names, walking and copying trees. Python's audit events
  tell (sys.addaudithook; "Audit events table" in its documentation).

What neither sees: a single read or write of a file, which takes no time in tests. Reviews look for
`in_files`. Sleeping is banned from the sources altogether, by tests/test_repository.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from typing import Any, Final

__all__ = ["LIMIT", "MESSAGE", "install", "wanted"]

LIMIT: Final = 0.05  # seconds
MESSAGE: Final = "the event loop was held"
_WAITS: Final = frozenset({
    "glob.glob", "os.listdir", "os.scandir", "shutil.copyfile", "shutil.copytree", "shutil.move",
    "shutil.rmtree", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname",
    "sqlite3.connect",
})  # fmt: skip
_NEVER_WAIT: Final = ("/proc", "/sys")

log = logging.getLogger(__name__)


def wanted() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get("VMGR_LOOP_WATCHDOG") == "1"


def install(limit: float = LIMIT) -> None:
    """Watch the loop that runs in this thread, for as long as the process lives."""
    thread = threading.get_ident()
    run = asyncio.Handle._run  # noqa: SLF001 (there is no public place between a loop's callbacks)

    def timed(handle: asyncio.Handle) -> None:
        before = time.thread_time()
        run(handle)
        if threading.get_ident() == thread and (took := time.thread_time() - before) > limit:
            log.error("%s for %.3f s by %r", MESSAGE, took, handle)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _WAITS or threading.get_ident() != thread:
            return
        place = str(arguments[0]) if arguments else ""
        # An import looks into directories; it happens once, and where it is written.
        if place.startswith(_NEVER_WAIT) or _is_importing():
            return
        log.error("%s by %s%r", MESSAGE, event, arguments)

    asyncio.Handle._run = timed  # type: ignore  # noqa: PGH003, SLF001
    sys.addaudithook(heard)


def _is_importing() -> bool:
    frame = sys._getframe(2)  # noqa: SLF001 (a debugging aid, as this module is)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
