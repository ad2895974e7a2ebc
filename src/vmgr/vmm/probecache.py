"""What was found out about this host, kept over restarts of the helper.

Asking QEMU for its version and proving that a guest runs on KVM take from tens of milliseconds to
seconds, and their answers only change with what they depend on. So each answer is stored under a
key made of all of that (path, inode, size and time of a binary, the boot of the host, …). A damaged
or missing file means asking again, never an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ProbeCache", "fingerprint"]

_ENTRIES_MAX: Final = 32  # old keys (upgraded QEMUs, past boots) must not pile up

log = logging.getLogger(__name__)


def fingerprint(path: Path) -> str:
    """What changes when a file is replaced, as package managers do: they never edit one.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    return f"{path}:{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


class ProbeCache:
    """Answers by key, in a JSON file.

    Its calls read and write that file: they are not for the loop's thread.

    Args:
        path: the file; its directory exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer stored under `key`."""
        answer = self._load().get(key)
        return answer if isinstance(answer, dict) else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Store an answer; a full disk only means that it is asked for again."""
        entries = self._load()
        entries.pop(key, None)
        entries[key] = answer
        for old in list(entries)[:-_ENTRIES_MAX]:
            del entries[old]
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            fresh.write_text(json.dumps(entries, indent=1), encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            log.warning("cannot write %s: %s", self._path, error.strerror)
            with contextlib.suppress(OSError):
                fresh.unlink()

    def _load(self) -> dict[str, Any]:
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}
