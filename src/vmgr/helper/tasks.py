"""Background tasks: each has a name, is kept until it ends, and its failure is fatal.

A bare `asyncio.create_task` may be collected while it runs and swallows its error. Rule 6 of the
process rules: an uncaught error in the helper is loud.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Tasks"]


class Tasks:
    """The helper's background tasks.

    Args:
        on_error: told of the exception that ended a task.
    """

    def __init__(self, on_error: Callable[[BaseException], object]) -> None:
        self._on_error = on_error
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start `coroutine` in the background."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)

    async def finish(self, deadline: float) -> None:
        """Let the tasks end; after `deadline` seconds cancel what is left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        while self._tasks and (left := until - loop.time()) > 0:  # one may start another
            await asyncio.wait(set(self._tasks), timeout=left)
        pending = set(self._tasks)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
