"""The header of a machine's disk that came from elsewhere.

Tools that open a qcow2 file believe what its header says: names of other files to read (the backing
file, an external data file), and more. So the header of a stranger's disk is checked here and
written anew, before any tool sees it; names in it are ours then. Its tables and data are the
machine's own affair, read by a VMM that is locked in.

Format: docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from vmgr.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["stand_on"]

# Magic, version, backing file's offset and size, cluster bits, size, encryption, L1 size and
# offset, refcount table's offset and clusters, snapshots and their offset, incompatible,
# compatible and autoclear features, refcount order, header length.
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC: Final = b"QFI\xfb"
_VERSION: Final = 3
_CLUSTER_BITS: Final = range(12, 22)  # QEMU's bounds are 9 and 21; the header needs its room
_REFCOUNT_ORDER_MAX: Final = 6
_BACKING_FORMAT: Final = struct.pack(">II8s", 0xE2792ACA, 3, b"raw")
_LAZY_REFCOUNTS: Final = 1
_NAME_MAX: Final = 1023


def stand_on(disk: Path, base: Path, size_bytes: int) -> None:
    """Let the overlay `disk` stand on `base`, whatever it says; blocks.

    Args:
        disk: the file, ours by now.
        base: a raw file; absolute.
        size_bytes: the size that a machine must see.

    Raises:
        UsageError: it is not a plain overlay of that size.
        OSError: it could not be read or written.
    """
    name = os.fsencode(base)
    fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        raw = os.pread(fd, _HEADER.size, 0)
        if len(raw) != _HEADER.size:
            raise UsageError("its disk is damaged")
        (magic, version, _, _, cluster_bits, size, encryption, *tables,
         incompatible, compatible, _, order, _) = _HEADER.unpack(raw)  # fmt: skip
        if magic != _MAGIC or version != _VERSION or cluster_bits not in _CLUSTER_BITS:
            raise UsageError("its disk is not of the kind that machines have")
        if size != size_bytes:
            raise UsageError(f"its disk has {size} bytes instead of {size_bytes}")
        # Dirty, corrupt, an external data file, other compression, extended L2 entries: none.
        snapshots = tables[4]
        if incompatible or encryption or snapshots or order > _REFCOUNT_ORDER_MAX:
            raise UsageError("its disk uses features that disks of machines do not have")
        cluster = 1 << cluster_bits
        l1_offset, refcount_offset = tables[1], tables[2]
        if min(l1_offset, refcount_offset) < cluster or (l1_offset | refcount_offset) % cluster:
            raise UsageError("its disk is damaged")
        at = _HEADER.size + len(_BACKING_FORMAT) + 8
        if len(name) > min(_NAME_MAX, cluster - at):
            raise UsageError(f"the path {base} is too long for a disk to stand on")
        header = _HEADER.pack(
            _MAGIC, _VERSION, at, len(name), cluster_bits, size, 0, *tables,
            0, compatible & _LAZY_REFCOUNTS, 0, order, _HEADER.size,
        )  # fmt: skip
        # Eight zeros end the extensions; zeros up to the cluster's end leave nothing of the old.
        first = (header + _BACKING_FORMAT + bytes(8) + name).ljust(cluster, b"\0")
        os.pwrite(fd, first, 0)
    finally:
        os.close(fd)
