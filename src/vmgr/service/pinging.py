"""The watchdog's pings: proof that the event loop still turns.

They are made by a callback of the loop itself and by nothing else, so a loop that hangs sends none,
and systemd ends the helper and starts the next. Machines do not notice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from vmgr.service.activation import Notifier

__all__ = ["ping"]

_PER_INTERVAL = 3  # a busy computer may be late with one


async def ping(notifier: Notifier, interval: float) -> NoReturn:
    """Send the watchdog's pings, until cancelled; sd_watchdog_enabled(3) has the interval."""
    never = asyncio.Event()
    while True:
        notifier.alive()
        try:
            async with asyncio.timeout(interval / _PER_INTERVAL):
                await never.wait()
        except TimeoutError:
            continue
