"""A new file of a person's that appears whole, under its name, or not at all.

It has no name until it is finished (O_TMPFILE of open(2)), so nothing is left of it whoever dies.
Where a file system has no such files it has a name that begins with a dot, and who dies leaves it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from vmgr.errors import ConflictError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["NewFile"]


class NewFile:
    """A file that is being written; 0600.

    Everything but making the object blocks and raises `OSError`. `close` it in any case.

    Args:
        path: what it is to be called.
        replace: whether it may take the place of another file.
    """

    fd: int
    """Once it is open."""

    def __init__(self, path: Path, *, replace: bool) -> None:
        self._path = path
        self._replace = replace
        self._named: Path | None = None
        self.fd = -1

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Make it.

        Raises:
            FileNotFoundError: there is no such directory.
        """
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            self.fd = os.open(self._path.parent, flags | os.O_TMPFILE, 0o600)
        except FileNotFoundError:
            raise
        except OSError:
            named = self._spare()
            self.fd = os.open(named, flags | os.O_CREAT | os.O_EXCL, 0o600)
            self._named = named

    def show(self) -> int:
        """Give it its name, now that it is finished; gives its size in bytes.

        Raises:
            ConflictError: there is a file of that name by now.
        """
        os.fsync(self.fd)
        size = os.fstat(self.fd).st_size
        try:
            if self._named is None:
                self._named = self._link()
            if self._named != self._path:
                self._rename()
        except FileExistsError:
            raise exists(self._path) from None
        self._named = None
        parent = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
        return size

    def close(self) -> None:
        """Let go of it; without `show` nothing is left."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._named is not None:
            with contextlib.suppress(FileNotFoundError):
                self._named.unlink()

    def _link(self) -> Path:
        """Give a file without a name one: the right one, or one to rename where it may replace."""
        target = self._spare() if self._replace else self._path
        # Only linkat(2) with a directory's fd follows that link.
        parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(
                f"/proc/self/fd/{self.fd}", target.name, dst_dir_fd=parent, follow_symlinks=True
            )
        finally:
            os.close(parent)
        return target

    def _rename(self) -> None:
        assert self._named is not None  # noqa: S101 (the caller's order)
        if self._replace:
            self._named.rename(self._path)
            return
        try:
            os.link(self._named, self._path)
        except FileExistsError:
            raise
        except OSError:  # no hard links here: as good as it gets
            if self._path.exists():
                raise FileExistsError from None
            self._named.rename(self._path)
        else:
            self._named.unlink()

    def _spare(self) -> Path:
        return self._path.with_name(f".{self._path.name[:200]}.{secrets.token_hex(4)}")


def exists(path: Path) -> ConflictError:
    """The error when a file is in the way."""
    return ConflictError(
        f"there is a file {path} already", next_step="take another name, or replace it with -f"
    )
