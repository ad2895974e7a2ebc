"""Reading what a process says on a pipe that was made for it, on the loop."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["chunks", "first_line"]

_READ_SIZE: Final = 65_536
_LINE_MAX: Final = 65_536


async def chunks(fd: int) -> AsyncGenerator[bytes, None]:
    """What comes on a pipe, as it comes, until its end. The caller closes `fd`, after this."""
    import asyncio

    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(fd, _READ_SIZE)
                if not chunk:
                    return
                yield chunk
    finally:
        loop.remove_reader(fd)


async def first_line(fd: int, deadline: float, *, whole: bytes = b"\n") -> str:
    """The first line that comes on a pipe; what there is of it when the pipe ends or time is up.

    Args:
        fd: the reading end; the caller closes it.
        deadline: seconds.
        whole: what else the line is known to be complete by, of a program that does not end it.
    """
    import asyncio

    data = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline), contextlib.aclosing(chunks(fd)) as parts:
            async for part in parts:
                data += part
                if whole in data or b"\n" in data or len(data) >= _LINE_MAX:
                    break
    return data.decode(errors="replace").strip().split("\n")[0]
