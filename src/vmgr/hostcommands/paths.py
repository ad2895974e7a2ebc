"""Paths of a machine and of this computer, where a directory is seen in both.

Text alone: nothing is looked up, so a link of the guest's means nothing here. What is opened by
such a path is opened as the person, who could open it anyway.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Shared", "Translation"]


@dataclass(frozen=True)
class Shared:
    """A directory that both see. Absolute, without `..`."""

    host: bytes
    guest: bytes


class Translation:
    """Translates both ways; of directories within each other the innermost counts."""

    def __init__(self, shared: Iterable[Shared]) -> None:
        self._shared = tuple(shared)

    def to_host(self, guest: bytes) -> bytes | None:
        """Where this computer has what the machine has at `guest`; None: nowhere."""
        return _moved(guest, [(one.guest, one.host) for one in self._shared])

    def to_guest(self, host: bytes) -> bytes | None:
        """Where the machine has what this computer has at `host`; None: nowhere."""
        return _moved(host, [(one.host, one.guest) for one in self._shared])

    def argument(self, text: bytes) -> bytes:
        """An argument as the host's command is to have it: whole paths in shared directories."""
        return self.to_host(text) or text if text.startswith(b"/") else text


def _moved(path: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes | None:
    if not path.startswith(b"/") or b"\0" in path:
        return None
    # `..` is taken as text: through a link of the guest's it would lead elsewhere than here anyway.
    plain = b"/" + posixpath.normpath(path).lstrip(b"/")
    best: tuple[bytes, bytes] | None = None
    for before, after in pairs:
        inside = plain == before or plain.startswith(before.rstrip(b"/") + b"/")
        if inside and (best is None or len(before) > len(best[0])):
            best = before, after
    if best is None:
        return None
    before, after = best
    rest = plain[len(before.rstrip(b"/")) :].lstrip(b"/")
    return posixpath.join(after, rest) if rest else after
