"""Seeing something happen in a directory: inotify(7), which Python has no module for."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["changes_in"]

_ATTRIB, _MOVED_TO, _CREATE = 0x4, 0x80, 0x100
_WHAT: Final = _ATTRIB | _MOVED_TO | _CREATE


@contextlib.contextmanager
def changes_in(directory: Path) -> Iterator[int]:
    """An fd that becomes readable when a file in `directory` appears or changes its attributes.

    What happened is to be looked up, and the events are to be read away.

    Raises:
        OSError: this user watches too many directories already, or it cannot be read.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        if libc.inotify_add_watch(fd, os.fsencode(directory), _WHAT) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        yield fd
    finally:
        os.close(fd)
