"""The way to the internet, kept up: started, watched, started again.

No machine waits for it. One that ends is started again at once, one that keeps ending after ever
longer pauses; whether there is a way is told when that changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from vmgr.errors import VmgrError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from vmgr.network.processes import NetworkProcesses

__all__ = ["Egress"]

_FIRST: Final = 1.0  # seconds that a machine's start gives the first try
_LONGEST: Final = 60.0
_STEADY: Final = 60.0  # seconds that one must have run for its end to be no failure of its own

log = logging.getLogger(__name__)


class Egress:
    """The egress process.

    Args:
        processes: starts it.
        start: runs a coroutine in the background, by a name.
        on_event: told of what happens: kind and facts.
        wanted: whether there are machines that need it.
        ready: awaited when it has begun: what is to be set in its namespace.
    """

    def __init__(
        self,
        processes: NetworkProcesses,
        start: Callable[[Coroutine[object, object, None], str], object],
        on_event: Callable[[str, dict[str, object]], None],
        wanted: Callable[[], bool],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        self._processes = processes
        self._start = start
        self._on_event = on_event
        self._wanted = wanted
        self._ready = ready
        self._kept = False
        self._tried = asyncio.Event()
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.problem: str | None = None
        """Why machines have no internet."""

    async def ensure(self) -> None:
        """See that it is kept up; waits for the first try, but not long."""
        if not self._kept and not self._closing.is_set():
            self._kept = True
            self._tried.clear()
            self._start(self._keep(), "egress")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST):
                await self._tried.wait()

    async def close(self) -> None:
        """Start no other."""
        self._closing.set()
        await self._idle.wait()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        again = False
        try:
            while not self._closing.is_set():
                self._tell(await self._begin(), again=again)
                self._tried.set()
                again = True
                began = loop.time()
                process = self._processes.egress
                if self.problem is None and process is not None:
                    ended = asyncio.ensure_future(process.wait())
                    closing = asyncio.ensure_future(self._closing.wait())
                    await asyncio.wait({ended, closing}, return_when=asyncio.FIRST_COMPLETED)
                    closing.cancel()
                    ended.cancel()
                    if self._closing.is_set() or not self._wanted():
                        return
                    log.warning("the egress process has ended; another is started")
                    if loop.time() - began >= _STEADY:
                        pause = 0.0
                elif not self._wanted():
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._closing.wait()
                pause = min(max(1.0, 2 * pause), _LONGEST)
        finally:
            self._kept = False

    async def _begin(self) -> str | None:
        """Start it, unless it runs; gives what keeps it from that."""
        process = self._processes.egress
        self._idle.clear()
        try:
            if process is None or not process.running:
                await self._processes.start_egress()
            await self._ready()
        except VmgrError as error:
            return error.message
        except (OSError, TimeoutError) as error:
            return f"the way to the internet cannot be made: {error}"
        finally:
            self._idle.set()
        return None

    def _tell(self, problem: str | None, *, again: bool) -> None:
        before, self.problem = self.problem, problem
        if problem != before:
            log.warning("the way to the internet: %s", problem or "it is there again")
            self._on_event("network.egress", {"problem": problem})
        if again and problem is None:
            self._on_event("network.restarted", {"process": "egress"})
