"""A few machines that run already, for the next `run` of their kind.

Each is an ephemeral machine with a made-up name, started from its template, that nobody has seen
yet: taking one is giving it a client. They are of the kind that was asked for last, take at most a
share of this computer's memory, and go when nobody has taken one for a while. A new helper ends
what an earlier one had waiting.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.errors import VmgrError
from vmgr.helper.commitment import host_memory

if TYPE_CHECKING:
    from vmgr.api.models import CreateMachine
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["Pool"]

_WARM: Final = (b"/bin/true",)
_WARM_DEADLINE: Final = 10.0

log = logging.getLogger(__name__)


class Pool:
    """The machines that wait."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._kind: CreateMachine | None = None
        """What those that wait were asked for as; None: nothing is kept."""
        self._image: str | None = None
        self._waiting: list[Machine] = []
        self._filling: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    async def take(self, wanted: CreateMachine) -> Machine | None:
        """A machine as `wanted` that runs, now the caller's; None: there is none.

        Either way the next ones will be of this kind.
        """
        size = int((await self._helper.settings()).get("pool.size"))
        if size == 0:
            await self.empty()
            return None
        # Shares are given to it when it is taken; who agreed to them is nothing of its kind.
        kind = msgspec.structs.replace(wanted, ephemeral=True, shares=[], consent=False)
        # A machine that was given a name, ports or volumes is one of a kind.
        if kind.name is not None or kind.ports or kind.cold or kind.snapshot is not None:
            return None
        if kind.volumes:
            return None
        image = (await self._helper.images.resolve(await self._image_of(kind))).digest
        if (kind, image) != (self._kind, self._image):
            await self.empty()
        machine = None
        while machine is None and self._waiting:
            machine = self._waiting.pop(0)
            if machine.status != "running" or machine.channel is None:
                self._throw_away(machine)
                machine = None
        if machine is not None:
            try:
                await machine.save(pooled=False)
            except BaseException:  # nobody else knows of it
                self._throw_away(machine)
                raise
        self._kind, self._image = kind, image
        return machine

    def refill(self) -> None:
        """Have the places that were taken filled again, in the background."""
        if self._kind is None or self._helper.stopping.is_set():
            return
        self._expire_later()
        if self._filling is None or self._filling.done():
            self._filling = self._helper.watchers.start(self._fill(), name="pool")

    async def empty(self) -> None:
        """Let go of all that wait."""
        self._kind = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait({self._filling})
            self._filling = None
        waiting, self._waiting = self._waiting, []
        await asyncio.gather(*(self._helper.machines.discard(m) for m in waiting))

    async def _fill(self) -> None:
        config = await self._helper.settings()
        size = int(config.get("pool.size"))
        share = int(config.get("pool.memory_percent")) / 100
        while (kind := self._kind) is not None and len(self._waiting) < size:
            # Those that wait are of one kind, and of one size.
            memory = kind.memory_bytes or int(config.get("machine.memory"))
            if (len(self._waiting) + 1) * memory > share * host_memory():
                log.info("the pool has its share of memory")
                break
            try:
                machine = await self._make(kind)
            except VmgrError as error:
                log.warning("the pool is not filled: %s", error)
                return
            if self._kind is kind:
                self._waiting.append(machine)
            else:
                self._throw_away(machine)
        self._helper.events.publish("pool.ready", waiting=len(self._waiting))

    async def _make(self, kind: CreateMachine) -> Machine:
        machines = self._helper.machines
        machine = await machines.create(kind, pooled=True)
        try:
            await machines.start(machine.name)
            # Its first command would translate what every command needs.
            channel = await machine.ready_channel()
            await channel.run([*_WARM], deadline=_WARM_DEADLINE)
        except TimeoutError:
            log.info("machine %s took long over its first command", machine.name)
        except BaseException:
            self._throw_away(machine)
            raise
        return machine

    def _throw_away(self, machine: Machine) -> None:
        self._helper.tasks.start(
            self._helper.machines.discard(machine), name=f"discard {machine.name}"
        )

    def _expire_later(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()

        async def expire() -> None:
            seconds = float((await self._helper.settings()).get("pool.keep"))

            def over() -> None:
                self._expiry = None
                self._helper.watchers.start(self.empty(), name="the pool is not used")

            self._expiry = asyncio.get_running_loop().call_later(seconds, over)

        self._helper.watchers.start(expire(), name="the pool's expiry")

    async def _image_of(self, kind: CreateMachine) -> str:
        return kind.image or str((await self._helper.settings()).get("image.default"))
