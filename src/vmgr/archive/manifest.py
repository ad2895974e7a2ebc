"""What is in an archive: its first member says it, and the rest must be just that.

An archive is a tar file (pax, with GNU's sparse members 1.0), plain or in zstd. Its members are
regular files without directories: `manifest.json`, then those of the manifest, in its order.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from vmgr.artifact.strangers import decode_json

__all__ = [
    "LIMITS", "MANIFEST", "MANIFEST_LIMIT", "ArchiveError", "Manifest", "Member", "read_manifest",
]  # fmt: skip

FORMAT: Final = "vmgr-snapshot"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
MANIFEST_LIMIT: Final = 1 << 16
_SMALL: Final = 1 << 20
_DISK: Final = 15 << 40  # as the largest disk of a machine
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

LIMITS: Final = {
    "snapshot.json": _SMALL,
    "disk.qcow2": _DISK,
    "saved.json": _SMALL,
    "memory": 16 << 40,
    "devices": 64 << 20,
    "image.json": _SMALL,
    "root.ext4": _DISK,
    "bundle.json": _SMALL,
    "vmlinux": 512 << 20,
    "vmlinuz": 512 << 20,
    "initramfs.cpio": 512 << 20,
    "modules.ext4": 16 << 30,
}
"""The members that there may be, and how many bytes each may have."""


class ArchiveError(Exception):
    """An archive cannot be read; the text follows the file's name in a sentence."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One member."""

    name: str
    size: int
    data: int
    """Bytes that are not in holes."""
    digest: str
    """Of the content, as `vmgr.artifact.sparse.digest_sparse` has it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `manifest.json`."""

    format: str = FORMAT
    version: int = VERSION
    made_by: str = ""
    """For people: which vmgr wrote it."""
    base_digest: str
    """Of the image's file that the disk stands on, whether it is in the archive or not."""
    members: list[Member]

    def has(self, name: str) -> bool:
        """Whether it has that member."""
        return any(member.name == name for member in self.members)

    @property
    def data(self) -> int:
        """Bytes that are to be written."""
        return sum(member.data for member in self.members)


class _Head(msgspec.Struct, frozen=True):
    format: str
    version: int


def read_manifest(text: bytes) -> Manifest:
    """Decode a manifest and see that it is in its bounds.

    Raises:
        ArchiveError: it is not, or is of another format.
    """
    try:
        head = decode_json(text, _Head)
    except ValueError:
        raise ArchiveError("is not a snapshot that vmgr exported") from None
    if head.format != FORMAT:
        raise ArchiveError("is not a snapshot that vmgr exported")
    if head.version > VERSION:
        raise ArchiveError(
            f"was written by a newer vmgr (format {head.version}, this one knows {VERSION})"
        )
    try:
        manifest = decode_json(text, Manifest)
    except ValueError as error:
        raise ArchiveError(f"is damaged: its manifest is not valid ({error})") from None
    names = [member.name for member in manifest.members]
    if len(set(names)) != len(names) or not set(names) <= LIMITS.keys():
        raise ArchiveError("is damaged: its manifest has files that a snapshot does not have")
    for member in manifest.members:
        if not 0 <= member.data <= member.size <= LIMITS[member.name]:
            raise ArchiveError(f"is damaged: its {member.name} has an impossible size")
        if not _DIGEST.fullmatch(member.digest):
            raise ArchiveError("is damaged: its manifest has no digests")
    if not _DIGEST.fullmatch(manifest.base_digest):
        raise ArchiveError("is damaged: its manifest has no digests")
    return manifest
