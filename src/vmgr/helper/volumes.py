"""Volumes as the helper uses them: who has which, plugging them in, taking them out.

A machine's row says which volumes it has. It *holds* them while it has a VMM or is suspended; one
that writes holds alone. That is seen to here, without awaiting anything between looking and taking,
and by QEMU's own lock on the file, which a VMM has whatever became of the helper.

What a row says is brought about whenever the machine has begun to run, before anything of the
person's runs in it, and again by each new helper; so each step may be done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.volumes import AttachVolume, VolumeInfo, VolumeUse, VolumeUser
from vmgr.errors import (
    AgentError,
    ConflictError,
    MachineError,
    NotFoundError,
    StateError,
    UnfitStateError,
    UnsupportedError,
    UsageError,
    VmgrError,
    WrongStateError,
)
from vmgr.saved import SavedVolume
from vmgr.saved.files import disk_mark
from vmgr.vmm import SLOTS, VmmVolume
from vmgr.vmm.hotplug import serial_of
from vmgr.volume import (
    VolumeFiles,
    check_path,
    check_volume_name,
    disk_of,
    needs_recovery,
    open_volume,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from vmgr.agent import AgentChannel, AgentHello
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine, Services
    from vmgr.saved import SavedState
    from vmgr.vmm import Vmm
    from vmgr.volume import Volume

__all__ = ["VolumeError", "Volumes", "check_marks", "with_marks"]

DEFAULT_SIZE: Final = 10 << 30
_MOUNT_DEADLINE: Final = 60.0  # seconds; the journal of one that was cut off is played back first
_UNMOUNT_DEADLINE: Final = 60.0  # what is not written yet is written first
_HOLDING: Final = frozenset({"starting", "running", "stopping", "suspending", "suspended"})

log = logging.getLogger(__name__)


class VolumeError(MachineError):
    """A machine cannot have one of its volumes; a boot would not help."""


class Volumes:
    """The helper's volumes."""

    def __init__(self, services: Services, helper: Helper) -> None:
        self._services = services
        self._helper = helper
        self._files = VolumeFiles(services.paths.volumes, services.executors.files)
        self._changing = asyncio.Lock()
        """Held while a volume is removed or resized, and while a row begins to name one."""
        self._claims: dict[str, list[VolumeUse]] = {}
        """What machines are about to hold, by their ids."""

    async def reconcile(self) -> None:
        """Remove what interrupted work left."""
        for line in await self._files.reconcile():
            log.info("removed residue: volume %s", line)

    # -- looking --------------------------------------------------------------------------------

    async def infos(self) -> list[VolumeInfo]:
        """All volumes, by name."""
        return [self._info(volume) for volume in await self._files.all()]

    async def get(self, name: str) -> Volume:
        """The volume of that name.

        Raises:
            NotFoundError: there is none.
            UsageError: it cannot be a volume's name.
        """
        check_volume_name(name)
        if (volume := await self._files.find(name)) is None:
            raise NotFoundError(
                f"there is no volume named {name}",
                next_step=f"make it with: vmgr volume create {name}",
            )
        return volume

    def _users(self, volume: str) -> list[tuple[Machine, VolumeUse]]:
        return [
            (machine, use)
            for machine in self._helper.machines.all()
            for use in machine.row.volumes
            if use.id == volume
        ]

    def _info(self, volume: Volume) -> VolumeInfo:
        return VolumeInfo(
            name=volume.name,
            id=volume.id,
            size_bytes=volume.size_bytes,
            used_bytes=volume.used_bytes,
            created_at=volume.created_at,
            machines=[
                VolumeUser(
                    machine=machine.name, status=machine.status, path=use.path,
                    read_only=use.read_only,
                )
                for machine, use in self._users(volume.id)
            ],
        )  # fmt: skip

    # -- making, removing, growing -----------------------------------------------------------------

    async def create(self, name: str, size_bytes: int | None) -> VolumeInfo:
        """Make an empty volume.

        Raises:
            ConflictError: there is one of that name.
            UsageError, ResourceError: it cannot be made.
        """
        check_volume_name(name)
        return self._info(await self._files.create(name, size_bytes or DEFAULT_SIZE))

    async def remove(self, name: str) -> VolumeInfo:
        """Remove a volume.

        Raises:
            ConflictError: a machine has it.
        """
        async with self._changing:
            volume = await self.get(name)
            if users := self._users(volume.id):
                machine = users[0][0].name
                raise ConflictError(
                    f"volume {name} belongs to machine {', '.join(m.name for m, _ in users)}",
                    next_step=f"take it from there first: vmgr volume detach {machine} {name}",
                )
            await self._files.remove(name)
            return self._info(volume)

    async def resize(self, name: str, size_bytes: int) -> VolumeInfo:
        """Grow a volume, and its file system where a machine writes to it.

        Raises:
            UsageError: that is less than it has.
            WrongStateError: a suspended machine has it.
            MachineError: it has grown, but a machine does not see it yet.
        """
        async with self._changing:
            volume = await self.get(name)
            users = self._users(volume.id)
            for machine, _ in users:
                # What is in its memory knows the size.
                if machine.status in {"suspending", "suspended"}:
                    raise _suspended(machine)
            await self._files.grow(volume, size_bytes)
            volume = await self.get(name)
            for machine, use in users:
                vmm, channel = machine.vmm, machine.channel
                if machine.status == "running" and vmm is not None and channel is not None:
                    await vmm.hotplug.resize(use.id, volume.size_bytes)
                    if not use.read_only:
                        await _mount(machine, channel, use)
            return self._info(volume)

    # -- which machine has which -------------------------------------------------------------------

    async def wanted(
        self, asked: Sequence[AttachVolume], had: Sequence[VolumeUse] = ()
    ) -> list[VolumeUse]:
        """What a machine has when it is given the volumes that are asked for.

        Raises:
            NotFoundError: there is no such volume.
            UsageError, ConflictError: it cannot have them all.
        """
        uses = list(had)
        for one in asked:
            volume = await self.get(one.volume)
            path = check_path(one.path, one.volume)
            if any(use.id == volume.id for use in uses):
                raise ConflictError(
                    f"the machine has volume {one.volume} already",
                    next_step="name each volume once",
                )
            if any(use.path == path for use in uses):
                raise ConflictError(
                    f"another volume is at {path} already",
                    next_step=f"name another place: {one.volume}:/PATH",
                )
            free = set(range(SLOTS)) - {use.slot for use in uses}
            if not free:
                raise UsageError(f"a machine has at most {SLOTS} volumes")
            uses.append(
                VolumeUse(
                    volume=volume.name, id=volume.id, path=path, read_only=one.read_only,
                    slot=min(free),
                )
            )  # fmt: skip
        return uses

    async def confirm(self, machine: Machine) -> None:
        """See that the volumes of a machine whose row names them now have not gone meanwhile.

        Raises:
            NotFoundError: one has.
        """
        async with self._changing:
            for use in machine.row.volumes:
                await self._volume_of(machine, use)

    async def _volume_of(self, machine: Machine, use: VolumeUse | SavedVolume) -> Volume:
        name = use.volume
        volume = await self._files.find(name)
        if volume is None or volume.id != use.id:
            raise NotFoundError(
                f"volume {name} of machine {machine.name} has gone",
                next_step=f"do without it: vmgr volume detach {machine.name} {name}",
            )
        return volume

    def check(self, machine: Machine, uses: Sequence[VolumeUse]) -> None:
        """See that a machine can hold these volumes now.

        Raises:
            ConflictError: another one writes to one of them, or reads what this one would write.
        """
        for other in self._helper.machines.all():
            if other is machine:
                continue
            held = list(self._claims.get(other.row.id, ()))
            if other.status in _HOLDING:
                held += other.row.volumes
            for theirs in held:
                for ours in uses:
                    if ours.id == theirs.id and not (ours.read_only and theirs.read_only):
                        raise _held(machine, ours, other, theirs)

    @contextlib.contextmanager
    def claiming(self, machine: Machine, uses: Sequence[VolumeUse]) -> Iterator[None]:
        """Let a machine hold these volumes until its row says so.

        Raises:
            ConflictError: as `check`.
        """
        self.check(machine, uses)
        self._claims[machine.row.id] = list(uses)
        try:
            yield
        finally:
            del self._claims[machine.row.id]

    async def ready(self, machine: Machine, uses: Sequence[VolumeUse]) -> None:
        """See that a machine could be given these volumes.

        Raises:
            ConflictError: as `check`; or one that is only to be read was not left clean.
            NotFoundError: one has gone.
        """
        self.check(machine, uses)
        for use in uses:
            volume = await self._volume_of(machine, use)
            if use.read_only and await self._services.executors.in_files(
                needs_recovery, volume.disk
            ):
                raise ConflictError(
                    f"volume {use.volume} was not left clean by the machine that wrote to it last, "
                    "so it cannot be only read",
                    next_step="start and stop a machine that has it without :ro",
                )

    # -- giving and taking ------------------------------------------------------------------------

    async def attach(self, name: str, asked: AttachVolume) -> None:
        """Give a machine a volume; at once where it runs.

        Raises:
            WrongStateError: it is suspended, say.
            ConflictError: another machine writes to it.
            VolumeError: it does not work in the machine, which is without it then.
        """
        machine = self._helper.machines.get(name)
        async with machine.lock:
            _check_settled(machine)
            before = machine.row.volumes
            uses = await self.wanted([asked], before)
            use = uses[-1]
            if machine.status == "stopped":
                await machine.save(volumes=uses)
                try:
                    await self.confirm(machine)
                except BaseException:
                    await asyncio.shield(machine.save(volumes=before))
                    raise
                return
            channel, vmm = await machine.ready_channel(), machine.vmm
            assert vmm is not None  # noqa: S101 (it is reached)
            await self.ready(machine, [use])
            with self.claiming(machine, [use]):
                # Before the VMM has it: a helper that dies now must know.
                await machine.save(volumes=uses)
                try:
                    await self.confirm(machine)
                    await self.bring(machine, vmm, channel, machine.greeting)
                except BaseException:
                    with contextlib.suppress(VmgrError):
                        await asyncio.shield(vmm.hotplug.unplug(use.id))
                    await asyncio.shield(machine.save(volumes=before))
                    raise
        self._services.events.publish("volume.attached", name, volume=use.volume, path=use.path)

    async def detach(self, name: str, volume: str) -> None:
        """Take a volume from a machine; at once where it runs.

        Raises:
            NotFoundError: it has none of that name.
            WrongStateError: it is suspended, say.
            ConflictError: something in the machine uses it.
            MachineError: the machine does not let go of it.
        """
        machine = self._helper.machines.get(name)
        async with machine.lock:
            use = next((use for use in machine.row.volumes if use.volume == volume), None)
            if use is None:
                raise NotFoundError(
                    f"machine {name} has no volume {volume}",
                    next_step=f"see those it has with: vmgr info {name}",
                )
            _check_settled(machine)
            if machine.status == "running":
                channel, vmm = await machine.ready_channel(), machine.vmm
                assert vmm is not None  # noqa: S101 (it is reached)
                await _unmount(machine, channel, use)
                await vmm.hotplug.unplug(use.id)
            rest = [other for other in machine.row.volumes if other is not use]
            await machine.save(volumes=rest)
        self._services.events.publish("volume.detached", name, volume=volume)

    async def bring(
        self, machine: Machine, vmm: Vmm, channel: AgentChannel, greeting: AgentHello
    ) -> None:
        """Have a machine that runs have all its volumes, each where it belongs.

        Raises:
            VolumeError: that does not work.
        """
        uses = machine.row.volumes
        if not uses:
            return
        try:
            if "volumes" not in greeting.features:
                raise UnsupportedError(
                    "its agent is of an older vmgr",
                    next_step=f"restart it with: vmgr restart {machine.name}",
                )
            there = await vmm.hotplug.plugged()
            for use in uses:
                if use.id not in there:
                    async with self.opened(machine, [_saved(use)]) as (volume,):
                        await vmm.hotplug.plug(volume)
            # One may be in a directory of another.
            for use in sorted(uses, key=lambda use: use.path):
                await _mount(machine, channel, use)
        except VmgrError as error:
            raise VolumeError(
                f"machine {machine.name} cannot have its volumes: {error.message}",
                next_step=error.next_step or f"see those it has with: vmgr info {machine.name}",
            ) from error

    async def bring_again(self, machine: Machine, vmm: Vmm, channel: AgentChannel) -> None:
        """The same for a machine that an earlier helper started; what fails is told."""
        try:
            await self.bring(machine, vmm, channel, machine.greeting)
        except VmgrError as error:
            log.warning("%s", error.message)
            self._services.events.publish("volume.failed", machine.name, reason=error.message)

    async def let_go(self, machine: Machine) -> None:
        """Have all that is in memory written to a machine's volumes before its VMM is killed."""
        channel = machine.channel
        written = [use for use in machine.row.volumes if not use.read_only]
        if not written or channel is None:
            return
        for use in sorted(written, key=lambda use: use.path, reverse=True):
            try:
                await _unmount(machine, channel, use)
            except VmgrError as error:
                log.info("machine %s: volume %s: %s", machine.name, use.volume, error.message)
                with contextlib.suppress(VmgrError):
                    await channel.sync(deadline=_UNMOUNT_DEADLINE)

    # -- saved machines ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def opened(
        self, machine: Machine, volumes: Sequence[SavedVolume]
    ) -> AsyncIterator[tuple[VmmVolume, ...]]:
        """Volumes for a VMM; its own copies of the fds go on when these are closed.

        Raises:
            NotFoundError: one has gone.
            StateError: one cannot be opened.
        """
        with contextlib.ExitStack() as stack:
            found = []
            for one in volumes:
                volume = await self._volume_of(machine, one)
                try:
                    fd = await self._services.executors.in_files(
                        open_volume, volume.disk, read_only=one.read_only
                    )
                except OSError as error:
                    raise StateError(
                        f"volume {one.volume} cannot be opened: {error.strerror}",
                        next_step=f"check the file {volume.disk}",
                    ) from error
                stack.callback(os.close, fd)
                found.append(VmmVolume(one.id, fd, one.slot, one.read_only))
            yield tuple(found)

    async def to_be_saved(self, machine: Machine, vmm: Vmm) -> list[SavedVolume]:
        """The volumes that what is saved of a machine now will have."""
        if not machine.row.volumes:
            return []
        there = await vmm.hotplug.plugged()
        return [_saved(use) for use in machine.row.volumes if use.id in there]


def check_fork(machine: Machine) -> None:
    """See that a machine's volumes permit a fork: two machines never write to one.

    Raises:
        ConflictError: it writes to one.
    """
    for use in machine.row.volumes:
        if not use.read_only:
            raise ConflictError(
                f"machine {machine.name} writes to volume {use.volume}, which a copy of it cannot",
                next_step=f"take it away for that long: vmgr volume detach {machine.name} "
                f"{use.volume}",
            )


def check_snapshot(machine: Machine) -> None:
    """See that a machine's volumes permit a snapshot of its memory, which outlives what is on them.

    Raises:
        ConflictError: it has one.
    """
    if machine.status != "stopped" and machine.row.volumes:
        volume = machine.row.volumes[0].volume
        raise ConflictError(
            f"machine {machine.name} has volume {volume} mounted, which a snapshot of its memory "
            "would find changed",
            next_step=f"stop it first, or take the volume away: vmgr volume detach "
            f"{machine.name} {volume}",
        )


def with_marks(state: SavedState, root: Path) -> SavedState:
    """What is saved of a machine, with what its volumes are like now; blocks."""
    marked = [
        msgspec.structs.replace(one, mark=disk_mark(disk_of(root, one.volume)))
        for one in state.volumes
    ]
    return msgspec.structs.replace(state, volumes=marked)


def check_marks(state: SavedState, root: Path) -> None:
    """See that the volumes of a saved machine are as they were; blocks.

    Raises:
        UnfitStateError: one is not.
    """
    for one in state.volumes:
        try:
            same = one.mark in {None, disk_mark(disk_of(root, one.volume))}
        except OSError:
            same = False
        if not same:
            raise UnfitStateError(f"its volume {one.volume} has changed since")


def _saved(use: VolumeUse) -> SavedVolume:
    return SavedVolume(volume=use.volume, id=use.id, slot=use.slot, read_only=use.read_only)


async def _mount(machine: Machine, channel: AgentChannel, use: VolumeUse) -> None:
    try:
        await channel.mount(
            serial_of(use.id), use.path, read_only=use.read_only, deadline=_MOUNT_DEADLINE
        )
    except AgentError as error:
        raise MachineError(
            f"volume {use.volume} at {use.path}: {error.message}",
            next_step=f"look at: vmgr logs {machine.name}",
        ) from error


async def _unmount(machine: Machine, channel: AgentChannel, use: VolumeUse) -> None:
    try:
        await channel.unmount(
            serial_of(use.id), use.path, read_only=use.read_only, deadline=_UNMOUNT_DEADLINE
        )
    except AgentError as error:
        if error.details.get("errno") != errno.EBUSY:
            raise
        raise ConflictError(
            f"something in machine {machine.name} uses volume {use.volume} at {use.path}",
            next_step=f"end it, or stop the machine: vmgr stop {machine.name}",
        ) from error


def _check_settled(machine: Machine) -> None:
    if machine.status in {"suspending", "suspended"}:
        raise _suspended(machine)
    if machine.status not in {"stopped", "running"}:
        raise WrongStateError(
            f"machine {machine.name} is {machine.status}, so its volumes stay as they are",
            next_step="wait until that is done",
        )


def _suspended(machine: Machine) -> WrongStateError:
    return WrongStateError(
        f"machine {machine.name} is suspended, and what is in its memory goes with its volumes as "
        "they are",
        next_step=f"let it go on first: vmgr resume {machine.name}",
    )


def _held(machine: Machine, ours: VolumeUse, other: Machine, theirs: VolumeUse) -> ConflictError:
    does = "reads" if theirs.read_only else "writes to"
    both = "" if theirs.read_only else f"; or only read it in both: {ours.volume}:{ours.path}:ro"
    return ConflictError(
        f"machine {other.name} ({other.status}) {does} volume {ours.volume}, so machine "
        f"{machine.name} cannot {'read' if ours.read_only else 'write to'} it",
        next_step=f"stop it first: vmgr stop {other.name}{both}",
    )
