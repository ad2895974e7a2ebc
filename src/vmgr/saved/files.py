"""A saved machine in a directory: written once, checked when it is read.

    DIRECTORY/saved.json   what is known of it, with checksums
    DIRECTORY/memory       the guest's memory, sparse
    DIRECTORY/devices      the state of the VMM's devices

The record is written last: a directory without one was never finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.errors import ResourceError, StateError, UnfitStateError
from vmgr.machine.sizes import format_size
from vmgr.saved.memory import load_memory, memory_checksum
from vmgr.saved.model import SavedState  # noqa: TC001 (msgspec resolves annotations at run time)
from vmgr.vmm import available_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

__all__ = [
    "LoadedMachine",
    "SavedMachine",
    "disk_mark",
    "finish",
    "load",
    "new_files",
    "read_record",
    "write_record",
]

RECORD: Final = "saved.json"
_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_RECORD_MAX: Final = 1 << 20
_DEVICES_MAX: Final = 64 << 20
_FULL: Final = frozenset({28, 122})  # ENOSPC, EDQUOT


class SavedMachine(msgspec.Struct, kw_only=True, frozen=True):
    """The record of a saved machine."""

    state: SavedState
    devices_checksum: int
    disk_mark: str | None = None
    """What its disk was like when it was saved, see `disk_mark`; None: the disk is saved too."""


@dataclass(frozen=True)
class LoadedMachine:
    """A saved machine that is sound and ready to go on; `close` it."""

    record: SavedMachine
    memory: int
    """fd of a sealed memfd."""
    devices: bytes

    def close(self) -> None:
        """Let go of the memory; a VMM that maps it keeps it."""
        os.close(self.memory)


@contextlib.contextmanager
def new_files(directory: Path) -> Iterator[tuple[int, int]]:
    """Make the files for memory and devices; gives their fds, which are closed at the end.

    Raises:
        ResourceError: no space left.
        StateError: they cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            memory = os.open(directory / "memory", os.O_RDWR | _NEW, 0o600)
            stack.callback(os.close, memory)
            devices = os.open(directory / "devices", os.O_WRONLY | _NEW, 0o600)
            stack.callback(os.close, devices)
        except OSError as error:
            raise _failed(error, directory) from error
        yield memory, devices


async def finish(
    directory: Path, state: SavedState, executor: Executor, *, disk: Path | None = None
) -> SavedMachine:
    """Write the record of a machine whose memory and devices are in `directory`.

    Args:
        disk: the machine's disk where that is not saved; it must be as it is now when the machine
            goes on. Its VMM has ended.

    Raises:
        ResourceError: no space left.
        StateError: it cannot be written.
    """
    checksum = await memory_checksum(directory / "memory", state.memory_bytes)

    def write() -> SavedMachine:
        record = SavedMachine(
            state=msgspec.structs.replace(state, memory_checksum=checksum),
            devices_checksum=zlib.crc32((directory / "devices").read_bytes()),
        )
        return write_record(directory, record, disk=disk)

    try:
        return await asyncio.get_running_loop().run_in_executor(executor, write)
    except OSError as error:
        raise _failed(error, directory) from error


def write_record(
    directory: Path, record: SavedMachine, *, disk: Path | None = None
) -> SavedMachine:
    """Write a record, with the mark of the disk as it is now; blocks and raises `OSError`."""
    mark = None if disk is None else disk_mark(disk)
    record = msgspec.structs.replace(record, disk_mark=mark)
    made = directory / f".{RECORD}.new"
    made.write_bytes(msgspec.json.encode(record))
    made.replace(directory / RECORD)
    return record


def disk_mark(disk: Path) -> str:
    """What changes when a disk's file is written to or replaced; blocks."""
    status = disk.stat()
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def read_record(directory: Path) -> SavedMachine:
    """What is known of a saved machine; blocks.

    Raises:
        UnfitStateError: there is none, or it is damaged.
        StateError: it cannot be read now.
    """
    try:
        with (directory / RECORD).open("rb") as file:
            return msgspec.json.decode(file.read(_RECORD_MAX), type=SavedMachine)
    except FileNotFoundError:
        raise UnfitStateError("its saved memory is missing") from None
    except msgspec.MsgspecError as error:
        raise UnfitStateError("the record of its saved memory is damaged") from error
    except OSError as error:
        raise StateError(
            f"the record of its saved memory cannot be read: {error.strerror}"
        ) from error


async def load(directory: Path, executor: Executor, *, disk: Path | None = None) -> LoadedMachine:
    """Read a saved machine and look at its checksums.

    Args:
        disk: the machine's disk, where that is to be as it was.

    Raises:
        UnfitStateError: it is missing or damaged, or its disk is another one by now.
        ResourceError: the host has not the memory.
        StateError: it cannot be read now.
    """

    def read() -> tuple[SavedMachine, bytes]:
        record = read_record(directory)
        if disk is not None and record.disk_mark is not None:
            _check_disk(disk, record.disk_mark)
        try:
            with (directory / "devices").open("rb") as file:
                devices = file.read(_DEVICES_MAX)
            # In its own file a memory takes what the machine has used of it.
            needed = (directory / "memory").stat().st_blocks * 512
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise UnfitStateError(f"the saved state of its {name} is missing") from error
        except OSError as error:
            raise StateError(f"what was saved cannot be read: {error.strerror}") from error
        if zlib.crc32(devices) != record.devices_checksum:
            raise UnfitStateError("the saved state of its devices is damaged")
        _check_memory(needed)
        return record, devices

    record, devices = await asyncio.get_running_loop().run_in_executor(executor, read)
    memory = await load_memory(
        directory / "memory", record.state.memory_bytes, record.state.memory_checksum
    )
    return LoadedMachine(record, memory, devices)


def _check_disk(disk: Path, mark: str) -> None:
    try:
        same = disk_mark(disk) == mark
    except OSError as error:
        raise StateError(f"its disk cannot be looked at: {error.strerror}") from error
    if not same:
        raise UnfitStateError("its disk has changed since")


def _check_memory(needed: int) -> None:
    # A memfd has no limit of its own: the host would look for the memory in other programs.
    available = available_memory()
    if needed > available:
        raise ResourceError(
            f"it has {format_size(needed)} of saved memory, but the host has only "
            f"{format_size(available)} left",
            next_step="stop other machines or programs",
            details={"needed": needed, "available": available},
        )


def _failed(error: OSError, directory: Path) -> ResourceError | StateError:
    if error.errno in _FULL:
        return ResourceError(
            f"no space left to save the machine in {directory}", next_step="free some space there"
        )
    return StateError(f"cannot save the machine in {directory}: {error.strerror}")
