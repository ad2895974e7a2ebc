from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from vmgr.service.holder import end_holder, lock_holder

HOLD = """
import fcntl, signal, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("held", flush=True)
signal.pause()
"""


def test_the_holder_is_known_without_touching_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert lock_holder(lock) is None
    with lock.open("w") as file:
        assert lock_holder(lock) is None, "it is there, and nobody holds it"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holder(lock) == os.getpid()
        fcntl.flock(file, fcntl.LOCK_UN)
        assert lock_holder(lock) is None


def test_another_files_inode_is_not_taken_for_ours(tmp_path: Path) -> None:
    lock, locks = tmp_path / "lock", tmp_path / "locks"
    lock.touch()
    number = lock.stat().st_ino
    locks.write_text(
        f"1: FLOCK  ADVISORY  WRITE {os.getpid()} 00:99:{number} 0 EOF\n"
        f"1: -> FLOCK  ADVISORY  WRITE {os.getpid()} 00:99:{number} 0 EOF\n"
        f"2: POSIX  ADVISORY  WRITE {os.getpid()} 00:99:{number} 0 EOF\nnonsense\n\n"
    )
    assert lock_holder(lock, locks) is None
    with lock.open():
        assert lock_holder(lock, locks) == os.getpid()


def test_the_holder_is_asked_to_end(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert lock_holder(lock) == holder.pid
        assert end_holder(lock, 30)
        assert holder.wait(30) == 7
    assert lock_holder(lock) is None
    assert end_holder(lock, 0), "nobody to end"
    assert Path("/proc/locks").exists()
