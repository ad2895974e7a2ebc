"""A file system with files whose content is elsewhere, as an SMB server or a cloud may have them.

`python remote_store.py DIRECTORY` mounts it and serves it until it is unmounted. What was opened or
listed is in its file `log`, which does not tell of itself.
"""

from __future__ import annotations

import errno
import stat
import struct
import sys
from typing import Any

import mfusepy as fuse

ATTRIBUTES = "user.smb3.dosattrib"
ARCHIVE, OFFLINE, RECALL_ON_OPEN = 0x20, 0x1000, 0x4_0000
FILES = {"/here": ARCHIVE, "/away": ARCHIVE | OFFLINE}
DIRECTORIES = {"/": ARCHIVE, "/far": RECALL_ON_OPEN}
CONTENT = b"content"


class Store(fuse.Operations):  # type: ignore[misc] # it has no types
    """Counts what costs something."""

    use_ns = True

    def __init__(self) -> None:
        self.log: list[str] = []

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        """Status of a file."""
        if path in DIRECTORIES:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path in FILES:
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": len(CONTENT)}
        if path == "/log":
            return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": 4096}
        raise fuse.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, _handle: int) -> list[str]:
        """Names."""
        self.log.append(f"list {path}")
        names = [*FILES, *DIRECTORIES, "/log"] if path == "/" else []
        return [".", "..", *(name[1:] for name in names if name != "/")]

    def open(self, path: str, _flags: int) -> int:
        """Fetch it, if this were real."""
        if path != "/log":
            self.log.append(f"open {path}")
        return 1

    def read(self, path: str, size: int, offset: int, _handle: int) -> bytes:
        """Content."""
        content = "\n".join(self.log).encode() if path == "/log" else CONTENT
        return content[offset : offset + size]

    def getxattr(self, path: str, name: str, _position: int = 0) -> bytes:
        """Its DOS attributes."""
        value = {**FILES, **DIRECTORIES}.get(path)
        if name != ATTRIBUTES or value is None:
            raise fuse.FuseOSError(errno.ENODATA)
        return struct.pack("=I", value)


if __name__ == "__main__":
    options: dict[str, Any] = {"foreground": True, "nothreads": True, "direct_io": True}
    fuse.FUSE(Store(), sys.argv[1], **options)
