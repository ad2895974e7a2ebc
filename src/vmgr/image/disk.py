"""A machine's disk: a qcow2 file that holds only what differs from its base.

The base is the image's file system or, for another size than the default one, a resized copy of it
that is kept beside it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Final

from vmgr.artifact.ext4 import resized_copy
from vmgr.artifact.faults import failed, human_size
from vmgr.artifact.staging import staging
from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import build_environment, require
from vmgr.errors import UsageError
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from vmgr.image.model import Image

__all__ = ["base_of", "create_disk", "remove_unused_bases"]

_DEADLINE: Final = 60.0
_LARGEST: Final = 15 << 40  # a file on ext4 with 4 KiB blocks ends at 16 TiB


async def create_disk(image: Image, path: Path, size_bytes: int, executor: Executor) -> None:
    """Make a machine's disk on an image; it appears complete or not at all.

    Any size that holds the image's content will do. The file system in it has that size at once.

    Args:
        image: what is on it; must stay as long as the disk does.
        path: the new file, absolute; what was there is replaced.
        size_bytes: what the machine sees; rounded up to a MiB.
        executor: for file work.

    Raises:
        UsageError: too small for the image.
        ResourceError: no space left.
        UnsupportedError: qemu-img or resize2fs is missing.
    """
    size_bytes = _whole_mib(size_bytes)
    if size_bytes < image.minimum_disk_bytes:
        raise UsageError(
            f"a disk of {human_size(size_bytes)} is too small for this image, which needs"
            f" {human_size(image.minimum_disk_bytes)}",
            next_step="ask for a larger disk",
            details={"minimum_bytes": image.minimum_disk_bytes},
        )
    if size_bytes > _LARGEST:
        raise UsageError(
            f"a disk of {human_size(size_bytes)} is more than ext4 files on hosts can be",
            next_step=f"ask for at most {human_size(_LARGEST)}",
        )
    base = base_of(image, size_bytes)
    if base != image.disk:
        await _make_sized_base(image, base, size_bytes, executor)
    await _create_overlay(base, path, size_bytes, executor)


def base_of(image: Image, size_bytes: int) -> Path:
    """The file that a disk of this size on this image stands on."""
    size_bytes = _whole_mib(size_bytes)
    if size_bytes == image.disk_bytes:
        return image.disk
    return image.directory / f"root-{size_bytes}.ext4"


async def _make_sized_base(image: Image, base: Path, size_bytes: int, executor: Executor) -> None:
    if await in_thread(executor, base.exists):
        return
    async with staging(image.directory.parent) as stage:
        made = stage / base.name
        await resized_copy(image.disk, made, size_bytes, executor)

        def show() -> None:
            made.chmod(0o400)
            # Not a rename: a base that someone else made meanwhile may be in use already.
            with contextlib.suppress(FileExistsError):
                base.hardlink_to(made)

        await in_thread(executor, show)


def _whole_mib(size: int) -> int:
    return -(-size // (1 << 20)) << 20


def remove_unused_bases(image: Image, sizes: Iterable[int]) -> tuple[list[str], int]:
    """Remove the bases of other sizes than an image's own that no disk stands on; blocks.

    Args:
        sizes: of the disks that machines have on this image, as asked for, in bytes.

    Returns:
        What was removed, and how many bytes that freed.
    """
    used = {f"root-{_whole_mib(size)}.ext4" for size in sizes}
    removed, freed = [], 0
    for base in sorted(image.directory.glob("root-*.ext4")):
        if base.name not in used:
            freed += base.stat().st_blocks * 512
            base.unlink()
            removed.append(f"{image.digest}/{base.name}")
    return removed, freed


async def _create_overlay(base: Path, path: Path, size_bytes: int, executor: Executor) -> None:
    require("qemu-img")
    # Beginning with `/`, neither name can be taken for a protocol or for JSON by qemu-img.
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        await run(
            [
                "qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=off",
                "-F", "raw", "-b", base, "--", made, str(size_bytes),
            ],
            env=build_environment(), deadline=_DEADLINE,
        )  # fmt: skip

        def show() -> None:
            fd = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            made.rename(path)

        await in_thread(executor, show)
    except (OSError, ProcessFailedError) as error:
        raise failed(error, "make the machine's disk", path.parent) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
