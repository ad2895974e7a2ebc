"""The person's own files as a tar stream for a machine.

The format is pax (POSIX.1-2008), whose headers carry what ustar cannot: long names, nanoseconds,
sizes above 8 GiB, and bytes that are not UTF-8.
"""

from __future__ import annotations

import os
import stat
import tarfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["pack"]

_PIECE: Final = 1 << 18
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def pack(
    sources: list[tuple[str, str]], *, owners: bool, on_problem: Callable[[str], None]
) -> Iterator[bytes]:
    """The tar stream of `sources`, in pieces.

    Args:
        sources: a path on the host and the name that it gets as the archive's first component.
            Symlinks are kept as they are, at any depth.
        owners: keep user and group numbers; else 0, which the other side takes as "yours".
        on_problem: told, in a sentence, of each file that was left out or changed underneath.
    """
    packer = _Packer(owners=owners, on_problem=on_problem)
    for path, name in sources:
        yield from packer.tree(path, name)
    yield _END


class _Packer:
    def __init__(self, *, owners: bool, on_problem: Callable[[str], None]) -> None:
        self._owners = owners
        self._on_problem = on_problem
        self._links: dict[tuple[int, int], str] = {}

    def tree(self, path: str, name: str) -> Iterator[bytes]:
        # A stack of our own: how deep a tree may be is no business of Python's.
        todo = [(path, name)]
        while todo:
            path, name = todo.pop()
            try:
                found = os.lstat(path)
                if stat.S_ISREG(found.st_mode):
                    yield from self._file(path, name)
                    continue
                info = self._info(name, found)
                if stat.S_ISDIR(found.st_mode):
                    info.type = tarfile.DIRTYPE
                    inner = sorted(os.listdir(path), reverse=True)  # noqa: PTH208 (plain strings)
                    todo += [(f"{path}/{entry}", f"{name}/{entry}") for entry in inner]
                elif stat.S_ISLNK(found.st_mode):
                    info.type = tarfile.SYMTYPE
                    info.linkname = os.readlink(path)  # noqa: PTH115 (a string, as it stands)
                else:
                    self._on_problem(
                        f"{path}: it is a device, a pipe or a socket, and was left out"
                    )
                    continue
            except OSError as error:
                self._on_problem(f"{path}: {error.strerror}")
                continue
            yield _header(info)

    def _file(self, path: str, name: str) -> Iterator[bytes]:
        fd = os.open(path, _OPEN)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(0, "it changed while it was read")
            info = self._info(name, found)
            identity = (found.st_dev, found.st_ino)
            if found.st_nlink > 1 and identity in self._links:
                info.type = tarfile.LNKTYPE
                info.linkname = self._links[identity]
                yield _header(info)
                return
            info.size = left = found.st_size
            yield _header(info)
            while left:
                piece = _read(fd, min(left, _PIECE))
                if not piece:
                    break
                left -= len(piece)
                yield piece
        finally:
            os.close(fd)
        if left:
            # The header has promised a size; what is missing must be made up.
            self._on_problem(f"{path}: it could not be read to its end; the rest is zeros")
            while left:
                count = min(left, _PIECE)
                yield bytes(count)
                left -= count
        yield bytes(-info.size % _BLOCK)
        if found.st_nlink > 1:
            self._links[identity] = name

    def _info(self, name: str, found: os.stat_result) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.mode = stat.S_IMODE(found.st_mode)
        seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
        info.mtime = seconds
        if nanoseconds and seconds >= 0:
            info.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
        if self._owners:
            info.uid, info.gid = found.st_uid, found.st_gid
        return info


def _read(fd: int, count: int) -> bytes:
    try:
        return os.read(fd, count)
    except OSError:
        return b""  # a bad sector, a share that has gone: as if the file ended


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
