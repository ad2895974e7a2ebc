"""Which process holds a lock file, without touching the lock.

With socket activation a connection starts a helper, so that is not the way to find out whether one
runs. The helper holds its lock (flock(2)) for as long as it lives; /proc/locks says who that is.
Trying the lock ourselves would make a helper that starts in that very moment believe in another.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["end_holder", "lock_holder"]


def lock_holder(lock: Path, locks: Path = Path("/proc/locks")) -> int | None:
    """The process of ours that holds the lock on a file; None when nobody does."""
    try:
        about = lock.stat()
        lines = locks.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for pid in _holders_of_inode(lines, about.st_ino):
        # Numbers of inodes are those of one file system, and a file system's own number is not
        # always what stat(2) gives (btrfs): what the process has open is sure.
        if _has_open(pid, about):
            return pid
    return None


def end_holder(lock: Path, deadline: float) -> bool:
    """Ask whoever holds the lock to end, and wait for that; whether the lock should be free now.

    A helper that is asked leaves its machines running. Blocks.
    """
    pid = lock_holder(lock)
    if pid is None:
        return True  # it ended meanwhile
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if lock_holder(lock) != pid:  # the number could have been another's by then
            return lock_holder(lock) is None
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(deadline * 1000))
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(pidfd)


def _holders_of_inode(lines: list[str], inode: int) -> Iterator[int]:
    """See "/proc/locks" in proc(5): `1: FLOCK ADVISORY WRITE 708 08:01:394217 0 EOF`."""
    for line in lines:
        fields = line.split()
        # One with an arrow waits for the lock.
        if len(fields) < 6 or fields[1] != "FLOCK":  # noqa: PLR2004 (the file's format)
            continue
        if fields[5].rpartition(":")[2] == str(inode) and fields[4].isdigit():
            yield int(fields[4])


def _has_open(pid: int, about: os.stat_result) -> bool:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 (numbers, not paths)
    except OSError:
        return False
    for number in numbers:
        try:
            found = Path(f"/proc/{pid}/fd/{number}").stat()
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (about.st_dev, about.st_ino):
            return True
    return False
