"""How much a machine may ask for: at once, and in the long run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Allowance"]


class Allowance:
    """A bucket of `most` that fills with `rate` a second."""

    def __init__(
        self, most: float, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._rate = rate
        self._clock = clock
        self._left = most
        self._counted = clock()

    def take(self) -> bool:
        """Take one; False when there is none left."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._counted) * self._rate)
        self._counted = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
