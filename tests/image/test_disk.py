from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.api.models import ImageImport
from vmgr.errors import ResourceError, UsageError
from vmgr.image import DEFAULT_DISK_BYTES, Image, ImageFiles, create_disk

from .conftest import entry, quiet, system, tarball

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor

GIB = 1 << 30
MACHINE = {"x86_64": 62, "aarch64": 183}[os.uname().machine]
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
async def image(images: ImageFiles, tmp_path: Path) -> Image:
    path = tmp_path / "root.tar"
    path.write_bytes(tarball(system(entry("etc/motd", content=b"hello"), machine=MACHINE)))
    return await images.import_tarball(ImageImport(path=str(path), name="x"), quiet)


def output(*argv: object) -> str:
    words = [str(word) for word in argv]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout


def describe(disk: Path) -> tuple[int, Path]:
    info = json.loads(output("qemu-img", "info", "--output=json", disk))
    assert info["format"] == "qcow2"
    assert info["backing-filename-format"] == "raw"
    return info["virtual-size"], Path(info["full-backing-filename"])


@pytest.mark.parametrize("size", [256 << 20, GIB, DEFAULT_DISK_BYTES, 100 * GIB, 4096 * GIB])
async def test_the_file_system_has_the_size_asked_for_at_once(
    image: Image, tmp_path: Path, executor: ThreadPoolExecutor, size: int
) -> None:
    disk = tmp_path / "disk.qcow2"
    await create_disk(image, disk, size, executor)
    virtual, base = describe(disk)
    assert virtual == size
    assert base.stat().st_size == size
    output("e2fsck", "-fn", base)
    header = output("dumpe2fs", "-h", base)
    blocks = re.search(r"^Block count: +(\d+)$", header, re.MULTILINE)
    assert blocks is not None
    assert 0 <= size - int(blocks[1]) * 4096 < 128 << 20  # no group smaller than a sensible one
    assert re.search(r"^Mount options: +noinit_itable$", header, re.MULTILINE)
    assert output("debugfs", "-R", "cat /etc/motd", base) == "hello"
    assert disk.stat().st_mode & 0o777 == 0o600
    assert disk.stat().st_blocks * 512 < 1 << 20


async def test_another_disk_of_the_same_size_shares_the_base(
    image: Image, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    disks = [tmp_path / f"{n}.qcow2" for n in range(3)]
    await asyncio.gather(*(create_disk(image, disk, GIB, executor) for disk in disks))
    assert len({describe(disk) for disk in disks}) == 1
    assert names(image.directory) == [
        "image.json", f"root-{GIB}.ext4", "root.ext4",
    ]  # fmt: skip


async def test_odd_sizes_are_rounded_up_to_a_mebibyte(
    image: Image, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    disk = tmp_path / "disk.qcow2"
    await create_disk(image, disk, GIB + 1, executor)
    assert describe(disk)[0] == GIB + (1 << 20)


async def test_sizes_that_cannot_be_are_refused(
    image: Image, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    for size, message in (
        (image.minimum_disk_bytes - (1 << 20), "is too small for this image, which needs"),
        (1 << 60, "is more than ext4 files on hosts can be"),
    ):
        with pytest.raises(UsageError, match=message):
            await create_disk(image, tmp_path / "disk.qcow2", size, executor)
    assert not (tmp_path / "disk.qcow2").exists()


async def test_the_smallest_size_named_works(
    image: Image, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    await create_disk(image, tmp_path / "disk.qcow2", image.minimum_disk_bytes, executor)
    output("e2fsck", "-fn", describe(tmp_path / "disk.qcow2")[1])


async def test_names_with_commas_and_colons_are_only_names(
    image: Image, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    disk = tmp_path / "a,size=1,b:json:{}" / "disk.qcow2"
    disk.parent.mkdir()
    await create_disk(image, disk, DEFAULT_DISK_BYTES, executor)
    assert describe(disk) == (DEFAULT_DISK_BYTES, image.disk)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mount = tmp_path / "full"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(mount)], check=True)
    (mount / "filler").write_bytes(bytes(4096))
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


async def test_a_disk_that_cannot_be_written_leaves_nothing(
    image: Image, full_disk: Path, executor: ThreadPoolExecutor
) -> None:
    with pytest.raises(ResourceError, match="no space left in"):
        await create_disk(image, full_disk / "disk.qcow2", DEFAULT_DISK_BYTES, executor)
    assert names(full_disk) == ["filler"]
