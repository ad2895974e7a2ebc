"""What a kernel bundle is, and how it is described on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BUNDLE_NAME", "FORMAT", "PART_NAME", "BundleInfo", "KernelBundle", "PartInfo"]

FORMAT: Final = 2
"""Raised when what is in a part or a bundle changes, so that older ones are built anew."""
PART_NAME: Final = "part.json"
BUNDLE_NAME: Final = "bundle.json"


class PartInfo(Struct, frozen=True, kw_only=True):
    """The content of `part.json`: what comes from a kernel package, whatever the agent."""

    format: int
    package: str
    version: str
    """Of the Debian package."""
    release: str
    """As `uname -r` says it."""
    built_at: float
    modules: list[str]
    """The boot modules' file names in `boot/`, in the order of loading."""
    network_modules: list[str]
    """Those of the network, likewise."""
    pvh: bool
    """Whether there is an uncompressed kernel."""
    kernel_sha256: str
    modules_sha256: str
    sizes: dict[str, int] = {}
    """Bytes of each file that bundles take over: another size is damage."""
    written_at: dict[str, int] = {}
    """When each was written, in nanoseconds: where that differs, the content is compared."""


class BundleInfo(Struct, frozen=True, kw_only=True):
    """The content of `bundle.json`."""

    format: int
    release: str
    version: str
    part: str
    agent_sha256: str
    initramfs_sha256: str
    built_at: float
    sizes: dict[str, int] = {}
    """Bytes of each file: another size is damage."""
    written_at: dict[str, int] = {}
    """When each was written, likewise."""


@dataclass(frozen=True)
class KernelBundle:
    """All that a machine needs to boot, besides its own disk."""

    release: str
    version: str
    directory: Path
    digest: str
    """`sha256:` and 64 hexadecimal digits: over the kernel, the initramfs and the module disk."""
    kernel: Path
    """What to give to QEMU: the uncompressed kernel where it can be entered, else the bzImage."""
    bzimage: Path
    """The kernel as the package has it, for what cannot load the other."""
    initramfs: Path
    modules: Path
    """The module tree as an ext4 file system, to be attached read-only."""
    agent_sha256: str
