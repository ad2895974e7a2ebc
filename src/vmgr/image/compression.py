"""Opening compressed tarballs, with bounds on what decompression may take."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from typing import IO, TYPE_CHECKING, Final

from vmgr.artifact.strangers import open_regular
from vmgr.artifact.tools import build_environment, require
from vmgr.errors import UsageError
from vmgr.spawner import spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["DECOMPRESSION_ERRORS", "open_tarball"]

DECOMPRESSION_ERRORS: Final = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
"""What the readers raise on damaged input."""

_XZ_MEMORY: Final = 512 << 20
_READ: Final = 1 << 18


@contextlib.asynccontextmanager
async def open_tarball(path: Path) -> AsyncIterator[IO[bytes]]:
    """Open a tarball for reading its uncompressed bytes (in an executor: reading blocks).

    Plain tar, gzip, bzip2, xz and (where the program is installed) zstd, told by their first bytes.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is not a regular file or cannot be opened.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        fd = file.fileno()
        head = os.pread(fd, 6, 0)
        if not head:
            raise UsageError(f"{path} is empty")
        if head.startswith(b"\x28\xb5\x2f\xfd"):
            async with _zstd(fd) as plain:
                yield plain
        elif head.startswith(b"\xfd7zXZ\x00"):
            with io.BufferedReader(_Xz(file), _READ) as plain:
                yield plain
        elif head.startswith(b"\x1f\x8b"):
            with io.BufferedReader(gzip.GzipFile(fileobj=file), _READ) as plain:
                yield plain
        elif head.startswith(b"BZh"):
            with bz2.BZ2File(file) as plain:
                yield plain
        else:
            yield file


@contextlib.asynccontextmanager
async def _zstd(fd: int) -> AsyncIterator[IO[bytes]]:
    require("zstd")
    read, write = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read, "rb", buffering=_READ) as plain:
        try:
            process = await spawn(
                ["zstd", "--decompress", "--stdout", "--quiet", "--memory=512MB"],
                env=build_environment(), stdin=fd, stdout=write, parent_death="kill",
            )  # fmt: skip
        finally:
            os.close(write)
        try:
            yield plain
        finally:
            # It has ended by itself when all was read; a cut-off stream shows as a cut-off tar.
            process.kill()
            await process.wait()


class _Xz(io.RawIOBase):
    """lzma.LZMAFile with a bound on memory, which a hostile file may ask gigabytes of."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0") or self._file.read(_READ).lstrip(
                    b"\0"
                )
                if not rest:
                    return 0
                self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
                data = self._decoder.decompress(rest, len(buffer))
            else:
                more = self._file.read(_READ) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not more:
                    raise EOFError("the compressed data ends too early")
                data = self._decoder.decompress(more, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
