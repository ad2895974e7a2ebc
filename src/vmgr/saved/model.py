"""What is known of a saved machine besides its memory and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMAT", "SavedState", "read_saved", "write_saved"]

FORMAT: Final = 1
"""Of the directory: files and their meaning. A saved machine of another format is not restored."""

_SMALL: Final = 1 << 20


class SavedState(msgspec.Struct, kw_only=True, frozen=True):
    """The circumstances under which a machine was saved; it comes back under the same."""

    format: int = FORMAT
    saved_at: float
    qemu: str
    """The version that wrote the device state; the same or a newer one reads it."""
    machine_type: str
    accelerator: str
    kernel_digest: str
    """The kernel bundle, whose module disk the machine has open."""
    kernel: str
    cpus: int
    memory_bytes: int
    boot_id: str
    init: str
    resync_keys: list[bytes]
    memory_used: int
    """Bytes of memory that were ever touched."""
    memory_checksum: int | None = None
    host_boot_id: str | None = None


def write_saved(path: Path, saved: SavedState) -> None:
    """Write it to a new file, durably; blocks."""
    with path.open("xb") as file:
        file.write(msgspec.json.encode(saved))


def read_saved(path: Path) -> SavedState:
    """Read it; blocks.

    Raises:
        StateError: it is missing, damaged or of another format.
    """
    try:
        with path.open("rb") as file:
            saved = msgspec.json.decode(file.read(_SMALL), type=SavedState)
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(f"the saved state in {path.parent} cannot be read") from error
    if saved.format != FORMAT:
        raise StateError(f"the saved state in {path.parent} is of another vmgr")
    return saved
