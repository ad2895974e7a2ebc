"""What an image is, and how its metadata stands in `image.json`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DEFAULT_DISK_BYTES", "DISK_NAME", "METADATA_NAME", "Image", "Metadata"]

DISK_NAME: Final = "root.ext4"
METADATA_NAME: Final = "image.json"
METADATA_VERSION: Final = 2
DEFAULT_DISK_BYTES: Final = 64 << 30
"""The size of an image's own file system, and of a machine's disk unless it asks otherwise."""
METADATA_LIMIT: Final = 1 << 20


class Metadata(Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The content of `image.json`."""

    version: int
    source: str
    created_at: float
    init: str | None
    default_user: str
    env: dict[str, str]
    entrypoint: list[str]
    architecture: str
    content_digest: str
    disk_bytes: int
    minimum_disk_bytes: int

    def digest(self) -> str:
        """The image's digest: of its files and of all that changes how a machine runs.

        SHA-256 over the JSON (sorted keys, no blanks) of architecture, content_digest (see
        `vmgr.image.tarball.Contents.digest`), default_user, disk_bytes, entrypoint, env, init and
        version. Two images that differ only in source or date are one. It is the files that are
        named, not the file system made of them: mke2fs writes down when it was made.
        """
        body = msgspec.json.encode(
            {
                "architecture": self.architecture,
                "content_digest": self.content_digest,
                "default_user": self.default_user,
                "disk_bytes": self.disk_bytes,
                "entrypoint": self.entrypoint,
                "env": self.env,
                "init": self.init,
                "version": self.version,
            },
            order="sorted",
        )
        return f"sha256:{hashlib.sha256(body).hexdigest()}"


@dataclass(frozen=True)
class Image:
    """An image on this host: read-only, named by what it is."""

    digest: str
    """`sha256:` and 64 hexadecimal digits, see `Metadata.digest`."""
    directory: Path
    source: str
    """`recipe:NAME` or `tarball:FILE`."""
    created_at: float
    size_bytes: int
    """What it takes on the host's disk."""
    init: str | None
    """The program that becomes PID 1; None: the agent is init."""
    default_user: str
    env: dict[str, str]
    entrypoint: list[str]
    architecture: str
    """As `uname -m` says it: `x86_64`."""
    minimum_disk_bytes: int
    """The smallest disk that holds its content."""
    disk_bytes: int = DEFAULT_DISK_BYTES
    """The size of its file system; of one that came with a snapshot, that of the machine's disk."""

    @property
    def disk(self) -> Path:
        """The file system, of `disk_bytes`, sparse."""
        return self.directory / DISK_NAME

    @classmethod
    def of(cls, directory: Path, metadata: Metadata, size_bytes: int) -> Image:
        """The image in `directory`."""
        return cls(
            digest=f"sha256:{directory.name}",
            directory=directory,
            source=metadata.source,
            created_at=metadata.created_at,
            size_bytes=size_bytes,
            init=metadata.init,
            default_user=metadata.default_user,
            env=dict(metadata.env),
            entrypoint=list(metadata.entrypoint),
            architecture=metadata.architecture,
            minimum_disk_bytes=metadata.minimum_disk_bytes,
            disk_bytes=metadata.disk_bytes,
        )
