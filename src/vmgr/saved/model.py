"""What is known of a saved machine besides its memory and devices."""

from __future__ import annotations

import msgspec

__all__ = ["SavedState"]


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
    share_ports: int = 0
    """How many ports for shares it has."""
