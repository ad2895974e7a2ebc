"""Snapshots: machines as they were at one moment, kept until they are removed."""

from vmgr.snapshot.files import Snapshot, SnapshotFiles, SnapshotRecord
from vmgr.snapshot.names import check_tag, made_up_tag, split_reference

__all__ = [
    "Snapshot",
    "SnapshotFiles",
    "SnapshotRecord",
    "check_tag",
    "made_up_tag",
    "split_reference",
]
