"""How much of what asks for nothing is borne: a burst, and so many in each second after it.

Data is bounded by credit and answers by what was asked. Events, and frames that change nothing, are
the agent's to send whenever it likes; one that sends nothing else would have the helper do nothing
else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmgr.agent.frames import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Patience"]


class Patience:
    """With one kind of message.

    Args:
        what: it is, for the reason.
        burst: how many may come at once.
        per_second: how many may come for ever.
        clock: seconds, from any beginning.
    """

    def __init__(
        self,
        what: str,
        burst: int,
        per_second: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._left: float = burst
        self._since = clock()

    def spend(self) -> None:
        """One has come; `ProtocolViolation` when it is one too many."""
        if self._left < 1:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._since) * self._per_second)
            self._since = now
            if self._left < 1:
                raise ProtocolViolation(f"a flood of {self._what}")
        self._left -= 1
