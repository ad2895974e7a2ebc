"""The D-Bus library's own loop, in a thread of its own.

A bus that dies in the midst of something leaves errors behind in the library that nobody asked for,
and in the helper's loop those would be fatal (process rule 6). The thread begins with the first use
and touches nothing of ours: it is given coroutines, and their results come back to who awaits them
(rule 5).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["BusThread"]

T = TypeVar("T")

log = logging.getLogger(__name__)


class BusThread:
    """Runs what uses the D-Bus library; `stop` it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the library's loop; cancelled, it is cancelled there."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(_on_error)
            threading.Thread(target=_turn, args=(self._loop,), name="vmgr-bus", daemon=True).start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def stop(self) -> None:
        """End the thread, and what still runs in it."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


def _on_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.info("D-Bus: %s: %r", context.get("message"), context.get("exception"))
