from __future__ import annotations

import asyncio
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import ConflictError, StateError, UsageError, VmgrError
from vmgr.volume import VolumeFiles, needs_recovery, open_volume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> Iterator[VolumeFiles]:
    with ThreadPoolExecutor(2) as executor:
        yield VolumeFiles(tmp_path, executor)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def sound(disk: Path) -> bool:
    command = ["/usr/sbin/e2fsck", "-fn", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def test_a_volume_is_made_whole_and_sparse(files: VolumeFiles, tmp_path: Path) -> None:
    made = await files.create("data", 100 * MIB + 1)
    assert made.size_bytes == 101 * MIB
    assert made.used_bytes < 10 * MIB
    assert sound(made.disk)
    assert not needs_recovery(made.disk)
    assert made.disk.stat().st_mode & 0o777 == 0o600
    assert await files.find("data") == made
    assert await files.all() == [made]
    assert names(tmp_path) == ["data"]


async def test_a_name_is_taken_once(files: VolumeFiles, tmp_path: Path) -> None:
    both = await asyncio.gather(
        files.create("data", 16 * MIB), files.create("data", 16 * MIB), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in both) == ["ConflictError", "Volume"]
    with pytest.raises(ConflictError, match="there is a volume named data already"):
        await files.create("data", 16 * MIB)
    assert names(tmp_path) == ["data"]


async def test_no_two_are_the_same(files: VolumeFiles) -> None:
    one, two = await files.create("one", 16 * MIB), await files.create("two", 16 * MIB)
    assert one.id != two.id
    # UUID and hash seed, at 0x68 and 0xec of the superblock.
    raw = [volume.disk.read_bytes()[1024:2048] for volume in (one, two)]
    assert raw[0][0x68:0x78] != raw[1][0x68:0x78]
    assert raw[0][0xEC:0xFC] != raw[1][0xEC:0xFC]


async def test_it_grows_and_does_not_shrink(files: VolumeFiles) -> None:
    volume = await files.create("data", 16 * MIB)
    await files.grow(volume, 64 * MIB)
    grown = await files.find("data")
    assert grown is not None
    assert (grown.id, grown.size_bytes) == (volume.id, 64 * MIB)
    assert sound(grown.disk)
    with pytest.raises(UsageError, match="volumes only grow"):
        await files.grow(grown, 32 * MIB)
    # Also where somebody else was quicker.
    await files.grow(volume, 32 * MIB)
    assert grown.disk.stat().st_size == 64 * MIB


@pytest.mark.parametrize("size", [1, 16 * MIB - MIB, 16 << 40])
async def test_sizes_that_cannot_be(files: VolumeFiles, tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError, match="a volume cannot have"):
        await files.create("data", size)
    assert names(tmp_path) == []


async def test_what_was_interrupted_is_never_seen(files: VolumeFiles, tmp_path: Path) -> None:
    (tmp_path / ".new-0123456789ab").mkdir()
    (tmp_path / ".new-0123456789ab/disk.ext4").write_bytes(b"half")
    assert await files.all() == []
    assert await files.reconcile() == [".new-0123456789ab"]
    assert names(tmp_path) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with next to no space."""
    if os.getuid() != 0:
        pytest.skip("mounts a small file system, which takes root")
    where = tmp_path / "small"
    where.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=64k", "none", str(where)]
    subprocess.run(mount, check=True)
    yield where
    subprocess.run(["/bin/umount", str(where)], check=True)


async def test_a_full_disk_leaves_nothing(small: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(VmgrError):
            await VolumeFiles(small, executor).create("data", 64 * MIB)
        assert names(small) == []


async def test_removing(files: VolumeFiles, tmp_path: Path) -> None:
    await files.create("data", 16 * MIB)
    await files.remove("data")
    assert await files.find("data") is None
    assert names(tmp_path) == []


async def test_a_damaged_one_is_told_where_it_is_named(files: VolumeFiles, tmp_path: Path) -> None:
    volume = await files.create("data", 16 * MIB)
    (tmp_path / "data/volume.json").write_bytes(b"{")
    assert await files.all() == []
    with pytest.raises(StateError, match="the volume data cannot be read"):
        await files.find("data")
    volume.disk.unlink()
    with pytest.raises(StateError):
        await files.find("data")


async def test_a_vmm_gets_no_more_than_it_may(files: VolumeFiles, tmp_path: Path) -> None:
    volume = await files.create("data", 16 * MIB)
    reading = open_volume(volume.disk, read_only=True)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(reading, b"x")
    finally:
        os.close(reading)
    (tmp_path / "link").symlink_to(volume.disk)
    with pytest.raises(OSError, match="symbolic"):
        open_volume(tmp_path / "link", read_only=True)


async def test_one_that_was_cut_off_is_seen(files: VolumeFiles) -> None:
    volume = await files.create("data", 16 * MIB)
    with volume.disk.open("r+b") as file:
        file.seek(1024 + 0x60)
        features = int.from_bytes(file.read(4), "little")
        file.seek(1024 + 0x60)
        file.write((features | 4).to_bytes(4, "little"))
    assert needs_recovery(volume.disk)
