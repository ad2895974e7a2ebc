"""The watchdog's pings: proof that the event loop still turns.

They are made by a callback of the loop itself and by nothing else, so a loop that hangs sends none,
and systemd ends the helper and starts the next. Machines do not notice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmgr.service.activation import Notifier

__all__ = ["Pinging"]

_PER_INTERVAL = 3  # a busy computer may be late with one


class Pinging:
    """Sends the watchdog's pings until it is closed; sd_watchdog_enabled(3) has the interval."""

    def __init__(self, notifier: Notifier, interval: float) -> None:
        self._notifier = notifier
        self._interval = interval
        self._ping()

    def close(self) -> None:
        """Ping no more."""
        self._next.cancel()

    def _ping(self) -> None:
        self._notifier.alive()
        loop = asyncio.get_running_loop()
        self._next = loop.call_later(self._interval / _PER_INTERVAL, self._ping)
