"""Ephemeral machines that an earlier helper left: each waits for its client to come back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Abandoned"]

GRACE: Final = 30.0  # seconds


class Abandoned:
    """The timers of machines that nobody looks after."""

    def __init__(self) -> None:
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def wait(self, name: str, then: Callable[[], object]) -> None:
        """Call `then` unless somebody comes for the machine in time."""
        self._timers[name] = asyncio.get_running_loop().call_later(GRACE, then)

    def claim(self, name: str) -> None:
        """Somebody looks after this machine (again)."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Wait for nobody any more."""
        for timer in self._timers.values():
            timer.cancel()
