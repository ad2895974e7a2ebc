"""Saved memories: sparse files, their checksums, and memfds that nobody can change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import StateError
from vmgr.saved import load_memory, memory_checksum
from vmgr.saved.copier import extents

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 << 20


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A memory with three pages in it."""
    path = tmp_path / "memory"
    with path.open("xb") as file:
        file.truncate(SIZE)
        for offset in (0, 8192, SIZE - 4096):
            file.seek(offset)
            file.write(os.urandom(4096))
    return path


async def test_a_loaded_memory_is_the_same_and_as_sparse(saved: Path) -> None:
    content = saved.read_bytes()  # noqa: ASYNC240 (nothing else runs)
    fd = await load_memory(saved, SIZE, await memory_checksum(saved, SIZE))
    try:
        assert os.pread(fd, SIZE, 0) == content
        assert os.fstat(fd).st_blocks * 512 <= 1 << 20
        assert sum(end - begin for begin, end in extents(fd, SIZE)) <= 1 << 20
    finally:
        os.close(fd)


async def test_nobody_can_change_a_loaded_memory(saved: Path) -> None:
    fd = await load_memory(saved, SIZE, None)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(again, 0)
    finally:
        os.close(again)
        os.close(fd)


@pytest.mark.parametrize("offset", [0, 8192 + 17, SIZE - 1])
async def test_one_wrong_bit_is_seen(saved: Path, offset: int) -> None:
    checksum = await memory_checksum(saved, SIZE)
    with saved.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(StateError, match="is damaged"):
        await load_memory(saved, SIZE, checksum)


async def test_data_in_another_place_is_seen(saved: Path) -> None:
    checksum = await memory_checksum(saved, SIZE)
    with saved.open("r+b") as file:
        page = file.read(4096)
        file.seek(1 << 20)
        file.write(page)
    assert await memory_checksum(saved, SIZE) != checksum


async def test_a_memory_cut_short_is_refused(saved: Path) -> None:
    os.truncate(saved, SIZE - 4096)
    with pytest.raises(StateError, match="is damaged: it is not"):
        await load_memory(saved, SIZE, None)


async def test_a_missing_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        await load_memory(tmp_path / "none", SIZE, None)
