"""What a machine's disk has moved, from QEMU's answer to `query-blockstats`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeGuard

__all__ = ["DiskTraffic", "disk_traffic"]

# The disk's device, whatever lies between it and the file by now.
_DEVICE: Final = "/machine/peripheral/root/"
_MOST: Final = 2**63  # a VMM may have been taken over by its guest: no number that JSON cannot hold


@dataclass(frozen=True)
class DiskTraffic:
    """Bytes that a machine has read from its disk and written to it."""

    read: int
    written: int


def disk_traffic(answer: Any) -> DiskTraffic | None:
    """Find the machine's disk in the answer; None where it is not, or not as it should be."""
    for entry in answer if isinstance(answer, list) else []:
        if not isinstance(entry, dict) or not str(entry.get("qdev")).startswith(_DEVICE):
            continue
        counts = entry.get("stats")
        if not isinstance(counts, dict):
            return None
        read, written = counts.get("rd_bytes"), counts.get("wr_bytes")
        if _is_count(read) and _is_count(written):
            return DiskTraffic(read, written)
    return None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < _MOST
