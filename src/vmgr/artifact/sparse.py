"""Disk files that are mostly holes: their digest, and copying them.

A 64 GB file system with 200 MB in it must cost as much as 200 MB, so all work follows the data
extents (SEEK_DATA, SEEK_HOLE of lseek(2)).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "allocated_bytes",
    "copy_sparse",
    "data_extents",
    "digest_file",
    "digest_sparse",
    "move_file",
]

_CHUNK: Final = 65_536
_COPY: Final = 8 << 20
_MAGIC: Final = b"vmgr-disk-1\n"
_FICLONE: Final = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h


def data_extents(fd: int) -> Iterator[tuple[int, int]]:
    """Offsets (begin, end) of the parts of a file that hold data, in order."""
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        try:
            begin = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        position = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, position


def digest_sparse(path: Path) -> str:
    """The digest of a disk: `sha256:` and 64 hexadecimal digits.

    SHA-256 over the line `vmgr-disk-1`, the size as 8 bytes little-endian, and then for each 64 KiB
    chunk that is not all zeros its offset (8 bytes little-endian) and its bytes, in order. So it
    depends on what a reader sees, not on where the host's file system happens to have holes.
    """
    total = hashlib.sha256(_MAGIC)
    zeros = bytes(_CHUNK)
    with path.open("rb", buffering=0) as file:
        total.update(struct.pack("<Q", os.fstat(file.fileno()).st_size))
        done = 0
        for begin, end in data_extents(file.fileno()):
            position = max(done, begin - begin % _CHUNK)
            while position < end:
                chunk = os.pread(file.fileno(), _CHUNK, position)
                if chunk != zeros[: len(chunk)]:
                    total.update(struct.pack("<Q", position))
                    total.update(chunk)
                position += _CHUNK
            done = position
    return f"sha256:{total.hexdigest()}"


def digest_file(path: Path) -> str:
    """The plain SHA-256 of a file: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes to the new file `target` (0600); shares blocks where possible.

    Raises:
        OSError: it could not be read or written; `target` may be left half-made.
    """
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        os.fchmod(writer.fileno(), 0o600)
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            pass  # a file system without reflinks
        else:
            return
        os.ftruncate(writer.fileno(), os.fstat(reader.fileno()).st_size)
        for begin, end in data_extents(reader.fileno()):
            position = begin
            while position < end:
                data = os.pread(reader.fileno(), min(_COPY, end - position), position)
                if not data:
                    break
                view = memoryview(data)
                while view:
                    written = os.pwrite(writer.fileno(), view, position)
                    position += written
                    view = view[written:]


def move_file(source: Path, target: Path) -> None:
    """Move a file to the new name `target`, to another file system too; holes stay holes.

    Raises:
        OSError: it could not be moved; `target` may be left half-made.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_sparse(source, target)
        source.unlink()


def allocated_bytes(*paths: Path) -> int:
    """What the files `paths` take on disk; those that are gone take nothing."""
    total = 0
    for path in paths:
        try:
            total += path.lstat().st_blocks * 512  # st_blocks counts 512-byte units, see stat(2)
        except FileNotFoundError:
            continue
    return total
