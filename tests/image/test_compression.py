from __future__ import annotations

import asyncio
import bz2
import gzip
import lzma
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.conftest import children

from vmgr.errors import NotFoundError, UsageError
from vmgr.image.compression import DECOMPRESSION_ERRORS, open_tarball

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLAIN = os.urandom(300_000) + bytes(3_000_000)


def zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


def xz_in_two_streams(data: bytes) -> bytes:
    return lzma.compress(data[:1000]) + bytes(8) + lzma.compress(data[1000:])


def same(data: bytes) -> bytes:
    return data


async def read(path: Path) -> bytes:
    async with open_tarball(path) as file:

        def all_of_it() -> bytes:
            return b"".join(iter(lambda: file.read(100_000), b""))

        return await asyncio.get_running_loop().run_in_executor(None, all_of_it)


@pytest.mark.parametrize(
    "pack", [same, gzip.compress, bz2.compress, lzma.compress, xz_in_two_streams, zstd]
)
async def test_all_kinds_are_told_by_their_first_bytes(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "without-a-telling-name"
    path.write_bytes(pack(PLAIN))
    assert await read(path) == PLAIN


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
async def test_cut_off_data_is_an_error(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x"
    path.write_bytes(pack(PLAIN)[:100_000])
    with pytest.raises(DECOMPRESSION_ERRORS):
        await read(path)


async def test_a_reader_that_stops_early_leaves_no_process(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(zstd(PLAIN))
    before = children()
    async with open_tarball(path) as file:
        assert children() > before
        assert await asyncio.get_running_loop().run_in_executor(None, file.read, 10) == PLAIN[:10]
    assert children() <= before


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for name, message in (
        ("fifo", "is not a regular file"),
        ("", "is not a regular file"),
        ("empty", "is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            await read(tmp_path / name)
    with pytest.raises(NotFoundError, match="there is no file"):
        await read(tmp_path / "missing")
