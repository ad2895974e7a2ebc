"""Suspending machines: their memory goes to disk and its RAM back to the host.

All that can fail is done while the machine could still go on; its VMM is ended when everything is
in its directory under its final name. What a dead helper leaves is told by the same rule: where
there is a whole saved memory and no VMM, the machine is suspended; where the VMM lives, it goes on
and the saved memory is of no use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
from typing import TYPE_CHECKING, Any, Final

from vmgr.errors import MachineError, StateError, VmgrError, WrongStateError
from vmgr.helper.capturing import capture, let_go_on
from vmgr.helper.privacy import any_private
from vmgr.helper.volumes import check_marks, with_marks
from vmgr.saved import files

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine, Services
    from vmgr.paths import MachinePaths
    from vmgr.saved import LoadedMachine

__all__ = ["Suspending"]

_STAGE: Final = ".saved-new"
_LEFT: Final = ".saved-old-"

log = logging.getLogger(__name__)


class Suspending:
    """Suspends machines, and reads what was saved of them."""

    def __init__(self, services: Services, helper: Helper) -> None:
        self._services = services
        self._helper = helper

    async def suspend(self, machine: Machine) -> None:
        """Save a running machine and end its VMM; the caller holds its lock.

        Raises:
            WrongStateError: it does not run, or is to be removed with its command.
            ResourceError, MachineError, StateError: it could not be saved, and goes on.
        """
        machine.require("suspend")
        if machine.row.ephemeral:
            raise WrongStateError(
                f"machine {machine.name} belongs to a `vmgr run`, so it cannot be suspended",
                next_step="make one to keep: vmgr create NAME",
            )
        vmm, channel = machine.vmm, await machine.ready_channel()
        if vmm is None:
            raise MachineError(f"machine {machine.name} has no VMM")
        executor = self._services.executors.files
        stage = machine.paths.state / _STAGE
        await machine.move("suspend")
        held = False
        try:
            await machine.nobody_enters.wait()
            await machine.save(private=any_private(await channel.jobs()))
            await self._services.executors.in_files(_fresh, stage)
            with files.new_files(stage) as (memory, devices):
                captured = await capture(
                    machine, channel, memory, devices, executor, sync=True, go_on=False,
                    volumes=await self._helper.volumes.to_be_saved(machine, vmm),
                )  # fmt: skip
            held = True
            volumes = self._services.paths.volumes
            state = await self._services.executors.in_files(with_marks, captured.state, volumes)
            await files.finish(stage, state, executor, disk=machine.paths.disk)
            await self._services.executors.in_files(_show, stage, machine.paths.saved)
        except BaseException as error:
            if held:
                await asyncio.shield(let_go_on(machine, vmm, channel))
            await asyncio.shield(self._not_suspended(machine, error))
            raise
        # From here on it is suspended, whatever happens.
        await asyncio.shield(self._end(machine))

    async def _not_suspended(self, machine: Machine, error: BaseException) -> None:
        await self._services.executors.in_files(
            shutil.rmtree, machine.paths.state / _STAGE, ignore_errors=True
        )
        if machine.status != "suspending":
            return  # its VMM has ended meanwhile
        reason = error.message if isinstance(error, VmgrError) else "suspending it was cancelled"
        log.warning("machine %s is not suspended: %s", machine.name, reason)
        await machine.move("ready")

    async def _end(self, machine: Machine) -> None:
        machine.saved_whole = True
        try:
            if machine.vmm is not None:
                # It holds nothing of the disk back since it was paused, and so does not touch it
                # once more: whoever finds it dead finds the disk that its memory goes with.
                await machine.vmm.kill("suspended", at_once=True)
            await machine.stopped.wait()
        finally:
            machine.saved_whole = False
        if machine.status != "suspended":  # killed, by whomever, at the last moment
            await self.drop(machine)
            raise MachineError(
                f"machine {machine.name} was not suspended: {machine.row.status_reason}",
                next_step=f"start it again with: vmgr start {machine.name}",
            )

    async def load(self, machine: Machine) -> LoadedMachine:
        """What was saved of a machine.

        Raises:
            ResourceError: the host has not the memory for it.
            StateError: it is missing or damaged, or does not fit the disk any more.
        """
        loaded = await files.load(
            machine.paths.saved, self._services.executors.files, disk=machine.paths.disk
        )
        try:
            await self._services.executors.in_files(
                check_marks, loaded.record.state, self._services.paths.volumes
            )
        except BaseException:
            loaded.close()
            raise
        return loaded

    async def still_saved(self, machine: Machine) -> bool:
        """Whether a machine without a VMM could go on from what was saved of it."""

        def look() -> bool:
            try:
                record = files.read_record(machine.paths.saved)
                mark = files.disk_mark(machine.paths.disk)
                check_marks(record.state, self._services.paths.volumes)
            except (StateError, OSError):
                return False
            return record.disk_mark in {None, mark}

        return await self._services.executors.in_files(look)

    async def can_again(self, machine: Machine) -> bool:
        """Whether a machine whose VMM has just ended is suspended, for all that is known.

        It was being suspended, or began to go on, and came so far that all is saved, or no further
        than that its disk is still as it was.
        """
        row = machine.row
        goes_on = row.status == "starting" and row.started_from in {"suspended", "snapshot"}
        if machine.kill_reason is not None or not (goes_on or row.status == "suspending"):
            return False
        return await self.still_saved(machine)

    async def drop(self, machine: Machine) -> None:
        """Remove what was saved of a machine; the caller holds its lock, or nobody knows it yet."""
        await self._services.executors.in_files(_remove, machine.paths)

    async def leave(self, machine: Machine) -> Callable[[], Coroutine[Any, Any, None]]:
        """Put what was saved of a machine aside; gives what removes it, which may take long.

        The caller holds its lock; what is given does not need it: the machine may be suspended
        again before it has come to its end.
        """
        left = machine.paths.state / f"{_LEFT}{secrets.token_hex(4)}"
        in_files = self._services.executors.in_files

        def put_aside() -> None:
            with contextlib.suppress(OSError):  # what stays there is of no use, and of no harm
                machine.paths.saved.rename(left)

        async def remove() -> None:
            await in_files(shutil.rmtree, left, ignore_errors=True)

        await in_files(put_aside)
        return remove


def _remove(paths: MachinePaths) -> None:
    for directory in (paths.saved, paths.state / _STAGE, *paths.state.glob(f"{_LEFT}*")):
        shutil.rmtree(directory, ignore_errors=True)


def _fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise StateError(f"cannot make {directory}: {error.strerror}") from error


def _show(stage: Path, saved: Path) -> None:
    try:
        if saved.exists():  # of an earlier time, and of no use since
            shutil.rmtree(saved)
        stage.rename(saved)
    except OSError as error:
        raise StateError(f"cannot save the machine in {saved}: {error.strerror}") from error
