"""Denials as they are told: the first of a kind at once, then how many more there were.

A program that is refused tries again, often thousands of times. Of one machine, `_KINDS` kinds are
kept apart; the rest is one number.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Tally"]

_KINDS: Final = 64
_INTERVAL: Final = 10.0  # seconds between two words about the same thing

_Kind = tuple[tuple[str, Any], ...]


class Tally:
    """Counts what machines are denied.

    Args:
        tell: called with a machine and what it was denied; `count` is there where it is not 1.
    """

    def __init__(
        self, tell: Callable[[str, dict[str, Any]], None], interval: float = _INTERVAL
    ) -> None:
        self._tell = tell
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._counts: dict[str, dict[_Kind, int]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, machine: str, denied: dict[str, Any]) -> None:
        """Something was denied."""
        counts = self._counts.setdefault(machine, {})
        kind = tuple(denied.items())
        if kind not in counts and len(counts) >= _KINDS:
            kind = (("protocol", "others"),)
        if kind in counts:
            counts[kind] += 1
        else:
            counts[kind] = 0
            self._tell(machine, dict(kind))
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._sweep)

    def forget(self, machine: str) -> None:
        """The machine has gone."""
        self._counts.pop(machine, None)

    def close(self) -> None:
        """End it."""
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        """Say what was counted; what did not come again is forgotten."""
        self._timer = None
        for machine, counts in list(self._counts.items()):
            for kind, count in list(counts.items()):
                if count:
                    counts[kind] = 0
                    self._tell(machine, {**dict(kind), "count": count})
                else:
                    del counts[kind]
            if not counts:
                del self._counts[machine]
        if self._counts:
            self._timer = self._loop.call_later(self._interval, self._sweep)
