"""The way to the internet is kept up, whatever its process does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from vmgr.errors import UnsupportedError
from vmgr.network.egress import Egress
from vmgr.spawner import minimal_environment, spawn

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vmgr.network.processes import NetworkProcesses
    from vmgr.spawner import Process


class Starting:
    """Starts programs that end as told, and records what is said of them."""

    def __init__(self, *programs: str | None) -> None:
        self._programs = list(programs)
        self.egress: Process | None = None
        self.events: list[tuple[str, dict[str, object]]] = []
        self.heard = asyncio.Event()
        self.ready = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.kept = Egress(
            cast("NetworkProcesses", self), self._start, self._event, lambda: True, self._ready
        )

    async def start_egress(self) -> None:
        program = self._programs.pop(0) if self._programs else "sleep 600"
        if program is None:
            raise UnsupportedError("slirp4netns is not installed")
        self.egress = await spawn(["sh", "-c", f"exec {program}"], env=minimal_environment())

    async def wait_for(self, kind: str, **data: Any) -> None:
        async with asyncio.timeout(60):
            while (kind, data) not in self.events:
                self.heard.clear()
                await self.heard.wait()

    async def end(self) -> None:
        await self.kept.close()
        if self.egress is not None:
            await self.egress.stop()
        await asyncio.gather(*self._tasks)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(work, name=name))

    def _event(self, kind: str, data: dict[str, object]) -> None:
        self.events.append((kind, data))
        self.heard.set()

    async def _ready(self) -> None:
        self.ready += 1


async def test_one_that_ends_is_started_again() -> None:
    it = Starting("false")
    await it.kept.ensure()
    await it.wait_for("network.restarted", process="egress")
    assert it.kept.problem is None
    assert it.ready == 2
    assert it.egress is not None
    assert it.egress.running
    await it.kept.ensure()  # nothing more to do
    assert it.ready == 2
    await it.end()


async def test_one_that_cannot_be_started_is_told_once_and_tried_again() -> None:
    it = Starting(None, None)
    await it.kept.ensure()
    assert it.kept.problem == "slirp4netns is not installed"
    await it.wait_for("network.egress", problem=None)
    assert it.events[:2] == [
        ("network.egress", {"problem": "slirp4netns is not installed"}),
        ("network.egress", {"problem": None}),
    ]
    await it.end()
