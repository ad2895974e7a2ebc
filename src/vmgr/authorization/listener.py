"""A terminal of the person's at which questions can be put."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmgr.api.hostcommands import Question, Settled

__all__ = ["Listener"]


class Listener:
    """One client that puts questions to the person.

    Args:
        machine: it takes questions about this machine alone; None: all.
    """

    def __init__(self, machine: str | None = None) -> None:
        self.machine = machine
        self._news: asyncio.Queue[Question | Settled] = asyncio.Queue()

    def takes(self, machine: str) -> bool:
        """Whether questions about that machine go here."""
        return self.machine in {None, machine}

    def tell(self, news: Question | Settled) -> None:
        """A question, or that one needs no answer any more."""
        self._news.put_nowait(news)

    async def next(self) -> Question | Settled:
        """What the client is to be told next."""
        return await self._news.get()
