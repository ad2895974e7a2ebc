"""A helper that nobody can reach any more ends, so that the next command gets one it can reach.

The socket's file may go while we listen: a cleaner of /tmp removes it, or systemd takes its place
with a socket of its own and then cannot start the service. We would hold the lock for ever, and
no other helper could start. Machines go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["inode_of", "stop_when_unreachable"]

_LOOK_EVERY: Final = 10.0

log = logging.getLogger(__name__)


def inode_of(path: Path) -> int | None:
    """Which file it is; None: there is none."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None


async def stop_when_unreachable(
    path: Path,
    inode: int | None,
    stopping: asyncio.Event,
    stop: Callable[[], None],
    look_every: float = _LOOK_EVERY,
) -> None:
    """Call `stop` once the socket's file at `path` is not the one that we listen on."""
    while not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(look_every):
                await stopping.wait()
                return
        if await asyncio.to_thread(inode_of, path) != inode:
            log.warning("%s is not ours any more, so nobody reaches this helper", path)
            stop()
            return
