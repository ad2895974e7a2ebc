"""Reads a capped, rotating log for a client: its end, then what is added.

Followers are woken by inotify on the log's directory, through the loop; nothing polls.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

from asyncinotify import Inotify, Mask

if TYPE_CHECKING:
    import re
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

__all__ = ["tail_file"]

CHUNK: Final = 65_536


async def tail_file(
    path: Path,
    *,
    lines: int | None,
    follow: bool,
    in_thread: Callable[..., Any],
    containing: re.Pattern[bytes] | None = None,
) -> AsyncIterator[bytes]:
    """Yield the log's content.

    Args:
        lines: only so many of the last lines; None: all there are, of the rotated file too.
        follow: go on with what is added, also across a rotation, until the generator is closed.
        in_thread: runs a blocking call elsewhere.
        containing: only lines in which this is found.
    """
    with Inotify() as watch:
        # The directory rather than the file: a rotation puts another file in its place.
        watch.add_watch(path.parent, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO | Mask.DELETE)
        file, content = await in_thread(_open_and_read, path, lines, containing)
        try:
            partial = b""
            while True:
                whole, partial = _whole_lines(partial + content, final=not follow)
                if chosen := _choose(whole, containing):
                    yield chosen
                if not follow:
                    return
                content = b""
                while not content:
                    event = await watch.get()
                    # The directory's own end would not be told while we hold a file in it.
                    if event.mask & Mask.DELETE and str(event.name) == path.name:
                        return  # the machine was removed
                    file, content = await in_thread(_read_on, path, file)
        finally:
            if file is not None:
                file.close()


def _whole_lines(data: bytes, *, final: bool) -> tuple[bytes, bytes]:
    if final:
        return data, b""
    end = data.rfind(b"\n") + 1
    # A line without end must not be kept for ever.
    return (data, b"") if len(data) - end > CHUNK else (data[:end], data[end:])


def _choose(data: bytes, wanted: re.Pattern[bytes] | None) -> bytes:
    if wanted is None:
        return data
    return b"".join(line for line in data.splitlines(keepends=True) if wanted.search(line))


def _open_and_read(
    path: Path, lines: int | None, wanted: re.Pattern[bytes] | None
) -> tuple[Any, bytes]:
    content = b""
    with contextlib.suppress(OSError):
        content = path.with_name(f"{path.name}.1").read_bytes()
    file = None
    with contextlib.suppress(FileNotFoundError):
        file = path.open("rb")
        content += file.read()
    if lines is not None:
        chosen = _choose(content, wanted).splitlines(keepends=True)
        content = b"".join(chosen[-lines:]) if lines > 0 else b""
    return file, content


def _read_on(path: Path, file: Any) -> tuple[Any, bytes]:
    """Read what was added; at a rotation the rest of the old file and all of the new one."""
    content = file.read() if file is not None else b""
    try:
        current = path.stat()
    except FileNotFoundError:
        return file, content
    if file is None or os.fstat(file.fileno()).st_ino != current.st_ino:
        if file is not None:
            file.close()
        file = path.open("rb")
        content += file.read()
    return file, content
