"""Secrets as files: one each, 0600, in a directory of mode 0700 below vmgr's state.

Whoever reads this user's files reads them; they are not encrypted, as there is nothing that a key
could be kept in which is better guarded than they are.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from vmgr.secret.names import MAX_SECRET, check_secret_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FileStore"]


class FileStore:
    """All calls may block.

    Args:
        directory: made when the first secret is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        """Those that there are.

        Raises:
            OSError: they cannot be listed; also for the other calls.
        """
        try:
            found = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.startswith("."))

    def get(self, name: str) -> bytes | None:
        """The secret; None: there is none of that name."""
        path = self._directory / check_secret_name(name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(MAX_SECRET)

    def set(self, name: str, value: bytes) -> None:
        """Keep a secret, in place of one of that name."""
        path = self._directory / check_secret_name(name)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        new = self._directory / f".{name}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    def remove(self, name: str) -> bool:
        """Forget a secret; False: there is none of that name."""
        try:
            (self._directory / check_secret_name(name)).unlink()
        except FileNotFoundError:
            return False
        return True
