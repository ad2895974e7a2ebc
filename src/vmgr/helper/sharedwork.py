"""One piece of work, several waiters: two requests for the same image build it once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Progress = Callable[[str, float | None], None]

__all__ = ["SharedWork"]

T = TypeVar("T")


@dataclass
class _Running:
    task: asyncio.Task[Any]
    listeners: list[Progress] = field(default_factory=list)
    last: tuple[str, float | None] | None = None


class SharedWork:
    """Work by key. It is cancelled, and its clean-up awaited, when the last waiter has gone."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    async def do(
        self, key: str, work: Callable[[Progress], Coroutine[Any, Any, T]], progress: Progress
    ) -> T:
        """Join the work called `key`, or begin it.

        Args:
            work: is given a function to report progress with, which reaches all waiters.
            progress: told of what has been reported last, then of all that follows.
        """
        running = self._running.get(key)
        if running is None:
            running = self._begin(key, work)
        elif running.last is not None:
            progress(*running.last)
        running.listeners.append(progress)
        try:
            return cast("T", await asyncio.shield(running.task))
        except asyncio.CancelledError:
            if len(running.listeners) == 1 and not running.task.done():
                # A newcomer from here on begins afresh rather than join what is being undone.
                self._running.pop(key, None)
                running.task.cancel()
                await asyncio.wait({running.task})
            raise
        finally:
            running.listeners.remove(progress)

    def _begin(self, key: str, work: Callable[[Progress], Coroutine[Any, Any, T]]) -> _Running:
        def tell(message: str, fraction: float | None) -> None:
            running.last = (message, fraction)
            for listener in list(running.listeners):
                listener(message, fraction)

        task = asyncio.get_running_loop().create_task(work(tell), name=key)
        running = _Running(task)
        self._running[key] = running

        def ended(_task: asyncio.Task[T]) -> None:
            if self._running.get(key) is running:
                del self._running[key]
            if not _task.cancelled():
                _task.exception()  # seen, also when every waiter has gone

        task.add_done_callback(ended)
        return running
