"""A helper that nobody can reach any more ends, so that the next command gets one it can reach.

The socket's file may go while we listen: a cleaner of /tmp removes it, or systemd takes its place
with a socket of its own and then cannot start the service. We would hold the lock for ever, and
no other helper could start. Machines go on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from asyncinotify import Inotify, Mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["inode_of", "stop_when_unreachable"]

_MASK: Final = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE
_GONE: Final = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED

log = logging.getLogger(__name__)


def inode_of(path: Path) -> int | None:
    """Which file it is; None: there is none."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None


async def stop_when_unreachable(path: Path, inode: int | None, stop: Callable[[], None]) -> None:
    """Call `stop` once the socket's file at `path` is not the one that we listen on."""
    try:
        watch = Inotify()
    except OSError as error:  # this user has no more of them
        log.warning("whether %s stays ours is not noticed: %s", path, error)
        return
    with watch:
        try:
            watch.add_watch(path.parent, _MASK | _GONE)
        except OSError as error:  # the directory has gone already
            log.info("%s is not watched: %s", path.parent, error)
        else:
            # It may have gone before it was watched.
            while await asyncio.to_thread(inode_of, path) == inode:
                event = await watch.get()
                while not event.mask & _GONE and str(event.name) != path.name:
                    event = await watch.get()
    log.warning("%s is not ours any more, so nobody reaches this helper", path)
    stop()
