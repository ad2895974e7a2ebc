"""Waiting for changes of files that others write: through links, and until they have settled."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncinotify import Inotify

__all__ = ["settled", "watched"]

_LINKS: Final = 16  # from one file to the next


def watched(path: Path) -> list[Path]:
    """The file, and each that it leads to by symbolic links; blocks."""
    places = [path]
    for _ in range(_LINKS):
        try:
            target = places[-1].readlink()
        except OSError:
            break
        # The directory is resolved: a link is relative to where it really is.
        where = Path(os.path.realpath(places[-1].parent))
        places.append(Path(os.path.normpath(where / target)))
    return places


async def settled(watch: Inotify, quiet: float, patience: float) -> None:
    """Wait until nothing has happened for `quiet` seconds, or for `patience` seconds in all."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while True:
                async with asyncio.timeout(quiet):
                    await watch.get()
