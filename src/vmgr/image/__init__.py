"""Images: read-only root file systems, and the machine disks made from them."""

from vmgr.image.adopting import adopted_metadata, check_metadata
from vmgr.image.disk import base_of, create_disk, remove_unused_bases
from vmgr.image.files import ImageFiles
from vmgr.image.model import DEFAULT_DISK_BYTES, Image, Metadata
from vmgr.image.qcow2 import stand_on
from vmgr.image.recipes import RECIPES, Recipe

__all__ = [
    "DEFAULT_DISK_BYTES",
    "RECIPES",
    "Image",
    "ImageFiles",
    "Metadata",
    "Recipe",
    "adopted_metadata",
    "base_of",
    "check_metadata",
    "create_disk",
    "remove_unused_bases",
    "stand_on",
]
