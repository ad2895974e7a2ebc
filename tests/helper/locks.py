"""Looking at the locks that QEMU takes on its files."""

from __future__ import annotations

import fcntl
import struct
from typing import Final

__all__ = ["is_locked"]

# Of QEMU's block/file-posix.c: a byte for each permission that somebody has taken.
_PERMISSIONS: Final = 100
_WRITE: Final = 1
_F_OFD_GETLK: Final = 36  # linux/fcntl.h


def is_locked(fd: int) -> bool:
    """Whether a QEMU that may write to the file has it open."""
    # struct flock: type, whence, start, length, pid.
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, _PERMISSIONS + _WRITE, 1, 0)
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, asked)
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
