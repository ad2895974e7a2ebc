"""Writing initramfs archives: the `newc` format of cpio, which the kernel unpacks.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux source. Times, inode
numbers and order depend only on what is added, so equal content gives an equal archive.
"""

from __future__ import annotations

import stat
from typing import IO, Final

__all__ = ["NewcWriter"]

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_MAX_FIELD: Final = 0xFFFFFFFF


class NewcWriter:
    """Writes one archive to a binary file; parents must be added before what is in them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inode = 0
        self._offset = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._entry(path, stat.S_IFDIR | mode, links=2)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._entry(path, stat.S_IFCHR | mode, device=(major, minor))

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self._inode = -1
        self._entry(_TRAILER, 0)
        self._pad(512)

    def _entry(
        self,
        path: str,
        mode: int,
        content: bytes = b"",
        *,
        links: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        name = path.encode() + b"\0"
        if path.startswith("/") or b"\0" in name[:-1] or len(content) > _MAX_FIELD:
            raise ValueError(f"{path!r} cannot be in an initramfs")
        self._inode += 1
        fields = (
            self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0,
        )  # fmt: skip
        self._write(_MAGIC + b"".join(b"%08X" % value for value in fields))
        self._write(name)
        self._pad(4)
        self._write(content)
        self._pad(4)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._offset += len(data)

    def _pad(self, to: int) -> None:
        self._write(bytes(-self._offset % to))
