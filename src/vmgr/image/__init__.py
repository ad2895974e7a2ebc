"""Images: read-only root file systems, and the machine disks made from them."""

from vmgr.image.disk import base_of, create_disk, remove_unused_bases
from vmgr.image.files import ImageFiles
from vmgr.image.model import DEFAULT_DISK_BYTES, Image
from vmgr.image.recipes import RECIPES, Recipe

__all__ = [
    "DEFAULT_DISK_BYTES",
    "RECIPES",
    "Image",
    "ImageFiles",
    "Recipe",
    "base_of",
    "create_disk",
    "remove_unused_bases",
]
