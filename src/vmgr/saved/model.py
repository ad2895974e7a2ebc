"""What is known of a saved machine besides its memory and devices."""

from __future__ import annotations

import msgspec

__all__ = ["SavedState", "SavedVolume"]


class SavedVolume(msgspec.Struct, kw_only=True, frozen=True):
    """A volume that a saved machine has; it is no part of what is saved."""

    volume: str
    id: str
    slot: int
    read_only: bool
    mark: str | None = None
    """What its file was like, see `vmgr.saved.files.disk_mark`; None: that does not matter."""


class SavedState(msgspec.Struct, kw_only=True, frozen=True):
    """The circumstances under which a machine was saved; it comes back under the same."""

    saved_at: float
    qemu: str
    """The version that wrote the device state."""
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
    volumes: list[SavedVolume] = []
    share_ports: int = 0
    """How many ports for shares it has."""
    layout: int = 0
    """Which devices it has, and where: `vmgr.vmm.LAYOUT` of when it booted."""
