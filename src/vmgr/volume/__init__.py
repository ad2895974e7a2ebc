"""Volumes: named disks for data that outlives machines."""

from vmgr.volume.files import Volume, VolumeFiles, disk_of, needs_recovery, open_volume
from vmgr.volume.names import check_path, check_volume_name

__all__ = [
    "Volume",
    "VolumeFiles",
    "check_path",
    "check_volume_name",
    "disk_of",
    "needs_recovery",
    "open_volume",
]
