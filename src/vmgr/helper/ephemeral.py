"""`run`: a fresh machine for one command, gone when the command has ended or its client has.

An ephemeral machine whose helper was killed goes on; the client comes back through `attach`, which
ends here too. One that nobody comes back for is removed (see `vmgr.helper.reconcile`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from vmgr.api import streams
from vmgr.helper.relay import JobRelay, RelayEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from vmgr.agent import Job
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["EphemeralRun"]


class EphemeralRun:
    """One client's run."""

    def __init__(self, helper: Helper, socket: web.WebSocketResponse) -> None:
        self._helper = helper
        self._socket = socket

    async def run(self, request: streams.Run) -> None:
        """Make the machine, run the command, remove the machine."""
        from vmgr.helper.streaming import progress_to, while_connected

        relay = JobRelay(self._socket)
        async with progress_to(self._socket) as progress:
            ready = await while_connected(self._socket, self._ready(request, relay, progress))
        if ready is None:
            return  # the client has gone, and what was made is undone
        machine, job = ready
        # Nobody waits for it: only who comes back after this helper's end asks for it.
        self._helper.tasks.start(
            machine.save(run_job=job.id), name=f"the command of {machine.name}"
        )
        started = streams.Started(machine=machine.name, job=job.id)
        await self.attached(machine, relay, job, started)

    async def attached(
        self, machine: Machine, relay: JobRelay, job: Job, started: streams.Started
    ) -> None:
        """Relay the command of an ephemeral machine; remove the machine unless the helper stops."""
        self._helper.machines.abandoned.claim(machine.name)
        # Before the client hears of the command's end, so that a script which looks then finds
        # nothing left.
        relay.before_exit = lambda: self._helper.machines.discard(machine)
        # Cancelled when the helper stops: then the machine goes on, and the client will be back.
        end = await relay.run(job, started)
        if end is not RelayEnd.DETACHED:
            await self._helper.machines.discard(machine)

    async def _ready(
        self, request: streams.Run, relay: JobRelay, progress: Callable[[str, float | None], None]
    ) -> tuple[Machine, Job]:
        machines = self._helper.machines
        wanted = msgspec.structs.replace(request.machine, ephemeral=True)
        await self._helper.consents.require_of(wanted)
        image = wanted.image or str((await self._helper.settings()).get("image.default"))
        await self._helper.images.ensure(image, progress)
        machine = await self._helper.pool.take(wanted)
        waited = machine is not None
        if machine is None:
            machine = await machines.create(wanted)
        try:
            if waited:
                await self._helper.shares.give(machine, wanted.shares)
            await machines.start(machine.name, progress)
            job = await machines.exec(machine, request.spec, relay)
        except BaseException:
            # Cancelled as well: the removal must not be.
            await asyncio.shield(machines.discard(machine))
            raise
        self._helper.pool.refill()
        return machine, job
