"""Logs that what a machine says cannot make grow.

Each keeps at most two files: `NAME`, and `NAME.1`, what came before it. A `CappedLog` is written by
us; a VMM's own log is written by the VMM, which a helper that is being replaced must not stop, so
that file is watched and cut (`trim`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CAP", "CappedLog", "read_tail", "trim"]

CAP: Final = 1 << 20  # bytes of each of the two files


class CappedLog:
    """An append-only log of at most twice `cap` bytes. Its calls do file work.

    Args:
        path: the newer file.
        cap: bytes of each file.
    """

    def __init__(self, path: Path, cap: int = CAP) -> None:
        self._path = path
        self._cap = cap
        self._fd: int | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append; a flood leaves its last bytes.

        Raises:
            OSError: the disk is full, or the directory gone.
        """
        data = data[-self._cap :]
        if self._fd is not None and self._size + len(data) > self._cap:
            self.close()
            self._path.replace(_older(self._path))
        if self._fd is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._fd).st_size
            if self._size + len(data) > self._cap and self._size:
                self.write(data)  # it was full when we came
                return
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def trim(path: Path, cap: int = CAP) -> bool:
    """Cut a log that another process appends to (O_APPEND) once it has grown beyond `cap`.

    Its last bytes move to the older file. What is written between the copy and the cut is lost.
    Tells whether there was something to cut.

    Raises:
        OSError: the disk is full, or the file gone.
    """
    if path.stat().st_size <= cap:
        return False
    _older(path).write_bytes(read_tail(path, cap))
    os.truncate(path, 0)
    return True


def read_tail(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of a log; nothing when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except OSError:
        return b""


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
