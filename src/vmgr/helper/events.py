"""What happens, as a numbered stream that clients can follow.

The last `KEPT` events are kept so that a client which lost its connection goes on where it was. A
follower that does not read is dropped at `BACKLOG` events rather than kept in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from vmgr.api.models import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["EventBus"]

KEPT: Final = 1_000
BACKLOG: Final = 1_000


class EventBus:
    """Publishes events to any number of followers."""

    def __init__(self) -> None:
        # Numbers go on rising across helpers, so `since` of an earlier helper never hides new
        # events.
        self._next = time.time_ns() // 1_000
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    def publish(self, kind: str, machine: str | None = None, **data: Any) -> Event:
        """Make an event and hand it to all followers."""
        event = Event(seq=self._next, at=time.time(), kind=kind, machine=machine, data=data)
        self._next += 1
        self._kept.append(event)
        for queue in list(self._followers):
            if queue.qsize() >= BACKLOG:
                self._followers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)
        return event

    async def follow(self, since: int | None = None) -> AsyncIterator[Event]:
        """Yield events as they come, beginning after `since` where still kept; ends when closed."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        if since is not None:
            for event in self._kept:
                if event.seq > since:
                    queue.put_nowait(event)
        if self._closed:
            queue.put_nowait(None)
        self._followers.add(queue)
        try:
            while (event_or_end := await queue.get()) is not None:
                yield event_or_end
        finally:
            self._followers.discard(queue)

    def close(self) -> None:
        """End all followers."""
        self._closed = True
        for queue in self._followers:
            queue.put_nowait(None)
