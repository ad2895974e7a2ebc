"""Snapshots, in requests and answers."""

from __future__ import annotations

from vmgr.api.base import Model

__all__ = [
    "CreateSnapshot",
    "SnapshotExport",
    "SnapshotFile",
    "SnapshotImport",
    "SnapshotInfo",
]


class CreateSnapshot(Model, frozen=True, kw_only=True):
    """What a new snapshot is to be called."""

    tag: str | None = None
    """None: the time now."""


class SnapshotInfo(Model, frozen=True, kw_only=True):
    """A machine as it was at one moment."""

    name: str
    """`MACHINE:TAG`."""
    machine: str
    tag: str
    created_at: float
    memory: bool
    """Whether it ran: then what ran in it goes on when it is restored."""
    image: str
    image_digest: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    size_bytes: int
    """What it takes on this computer's disk."""


class SnapshotExport(Model, frozen=True, kw_only=True):
    """Write a snapshot to one file on this host."""

    snapshot: str
    """`MACHINE:TAG`."""
    path: str
    """Absolute. The helper makes it with the rights of the person; nobody else may read it."""
    force: bool = False
    """Replace a file that is there."""
    without_image: bool = False
    """Leave out image and kernel, for a computer that has the same ones."""


class SnapshotFile(Model, frozen=True, kw_only=True):
    """A file with a snapshot in it."""

    snapshot: str
    path: str
    size_bytes: int
    image: bool
    """Whether the image, and the kernel where it is needed, are in it too."""


class SnapshotImport(Model, frozen=True, kw_only=True):
    """Take a snapshot from a file on this host."""

    path: str
    """Absolute."""
    name: str | None = None
    """`MACHINE:TAG`; None: as it was called where it came from."""
