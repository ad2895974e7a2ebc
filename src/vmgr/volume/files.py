"""Volumes on disk: a directory for each, named by its name.

    NAME/volume.json   which one it is, and since when
    NAME/disk.ext4     its file system, raw and sparse

Raw, not qcow2: nothing is between the machine and its data, growing is one system call that is done
or not, holes come and go with the file system's own, and there is no header that a VMM which a
guest took over could write a file's name into. A volume appears whole by a rename and goes at once
by another.
"""

from __future__ import annotations

import os
import secrets
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.artifact.ext4 import make_empty
from vmgr.artifact.faults import failed, human_size
from vmgr.artifact.staging import discard, publish, remove_residue, staging
from vmgr.artifact.threads import in_thread
from vmgr.errors import ConflictError, StateError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

__all__ = ["Volume", "VolumeFiles", "disk_of", "needs_recovery", "open_volume"]

DISK: Final = "disk.ext4"
RECORD: Final = "volume.json"
_RECORD_MAX: Final = 1 << 16
_SMALLEST: Final = 16 << 20
_LARGEST: Final = 15 << 40  # a file on ext4 with 4 KiB blocks ends at 16 TiB
# ext4's superblock, Documentation/filesystems/ext4/super.rst.
_FEATURES_AT: Final = 1_024 + 0x60
_NEEDS_RECOVERY: Final = 0x4


class VolumeRecord(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a volume besides its file."""

    id: str
    created_at: float


@dataclass(frozen=True)
class Volume:
    """A volume on disk."""

    name: str
    id: str
    created_at: float
    disk: Path
    size_bytes: int
    used_bytes: int


class VolumeFiles:
    """The volumes of one user."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self._root = root
        self._executor = executor

    async def all(self) -> list[Volume]:
        """All of them, by name."""
        return await in_thread(self._executor, self._list)

    async def find(self, name: str) -> Volume | None:
        """The volume of that name, or None.

        Raises:
            StateError: it is damaged.
        """

        def look() -> Volume | None:
            try:
                return _read(self._root / name)
            except FileNotFoundError:
                return None

        return await in_thread(self._executor, look)

    async def create(self, name: str, size_bytes: int) -> Volume:
        """Make an empty volume.

        Raises:
            ConflictError: there is one of that name.
            UsageError: it cannot have that size.
            ResourceError: no space left.
        """
        size_bytes = _checked(size_bytes)
        try:
            async with staging(self._root) as stage:
                await make_empty(stage / DISK, size_bytes, self._executor)

                def show() -> bool:
                    (stage / DISK).chmod(0o600)
                    record = VolumeRecord(id=secrets.token_hex(6), created_at=time.time())
                    (stage / RECORD).write_bytes(msgspec.json.encode(record))
                    return publish(stage, self._root / name)

                if not await in_thread(self._executor, show):
                    raise ConflictError(
                        f"there is a volume named {name} already",
                        next_step="take another name, or see them with: vmgr volume ls",
                    )
                return await in_thread(self._executor, _read, self._root / name)
        except OSError as error:
            raise failed(error, "make the volume", self._root) from error

    async def grow(self, volume: Volume, size_bytes: int) -> None:
        """Make a volume's file larger; the file system follows when a machine mounts it.

        Raises:
            UsageError: that is less than it has.
            ResourceError: no space left.
        """
        size_bytes = _checked(size_bytes)
        if size_bytes < volume.size_bytes:
            raise UsageError(
                f"volume {volume.name} has {human_size(volume.size_bytes)}, and volumes only grow",
                next_step="make a smaller one and copy what is in it: vmgr volume create",
            )

        def grow() -> None:
            fd = os.open(volume.disk, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                # Never shorter, whatever has happened since it was looked at.
                if os.fstat(fd).st_size < size_bytes:
                    os.ftruncate(fd, size_bytes)
                    os.fsync(fd)
            finally:
                os.close(fd)

        try:
            await in_thread(self._executor, grow)
        except OSError as error:
            raise failed(error, "grow the volume", self._root) from error

    async def remove(self, name: str) -> None:
        """Remove a volume that nothing uses."""
        await discard(self._root / name)

    async def reconcile(self) -> list[str]:
        """Remove what interrupted work left; gives the names."""
        return await remove_residue(self._root)

    def _list(self) -> list[Volume]:
        found = []
        for entry in sorted(self._root.iterdir()):
            if not entry.name.startswith("."):
                try:
                    found.append(_read(entry))
                except (FileNotFoundError, StateError):
                    continue  # it has just gone; or whoever names it is told
        return found


def disk_of(root: Path, name: str) -> Path:
    """The file of the volume of that name among those in `root`."""
    return root / name / DISK


def open_volume(disk: Path, *, read_only: bool) -> int:
    """An fd of a volume's file for a VMM, which must be handed exactly what it may do; blocks."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    return os.open(disk, mode | os.O_CLOEXEC | os.O_NOFOLLOW)


def needs_recovery(disk: Path) -> bool:
    """Whether whoever wrote to it last was cut short, so that it cannot be only read; blocks."""
    with disk.open("rb") as file:
        file.seek(_FEATURES_AT)
        (features,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
    return bool(features & _NEEDS_RECOVERY)


def _checked(size_bytes: int) -> int:
    asked, size_bytes = size_bytes, -(-size_bytes // (1 << 20)) << 20
    if not _SMALLEST <= size_bytes <= _LARGEST:
        raise UsageError(
            f"a volume cannot have {human_size(asked)}",
            next_step=f"ask for {human_size(_SMALLEST)} to {human_size(_LARGEST)}",
        )
    return size_bytes


def _read(directory: Path) -> Volume:
    disk = directory / DISK
    try:
        with (directory / RECORD).open("rb") as file:
            record = msgspec.json.decode(file.read(_RECORD_MAX), type=VolumeRecord)
        status = disk.stat()
    except FileNotFoundError:
        if directory.is_dir():
            raise StateError(
                f"the volume {directory.name} is damaged: files of it are missing",
                next_step=f"look into {directory}",
            ) from None
        raise
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(
            f"the volume {directory.name} cannot be read", next_step=f"look into {directory}"
        ) from error
    return Volume(
        directory.name, record.id, record.created_at, disk, status.st_size, status.st_blocks * 512
    )
