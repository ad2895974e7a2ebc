"""Snapshots as the helper uses them: taking, listing, restoring, removing them, and new machines.

A snapshot of a running machine has its memory, devices and disk of one moment; the machine stands
still for as long as a fork takes. Restoring one makes the machine a suspended one that goes on from
there; while that is done the row says `restoring` and from which, so a new helper does it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vmgr.api.snapshots import SnapshotInfo
from vmgr.artifact.faults import failed
from vmgr.artifact.sparse import copy_sparse
from vmgr.artifact.staging import staging
from vmgr.errors import ConflictError, NotFoundError, StateError, UsageError
from vmgr.helper.archives import SnapshotArchives
from vmgr.helper.capturing import capture
from vmgr.helper.forking import copied_row
from vmgr.helper.hostcalls import rights_of
from vmgr.helper.privacy import nothing_private
from vmgr.helper.shares import more_rows
from vmgr.helper.store import MachineRow
from vmgr.helper.volumes import check_snapshot
from vmgr.image import create_disk
from vmgr.machine.names import check_name, make_up_name
from vmgr.network import canonical
from vmgr.saved import files as saved_files
from vmgr.snapshot import (
    Snapshot,
    SnapshotFiles,
    SnapshotRecord,
    check_tag,
    made_up_tag,
    split_reference,
)
from vmgr.snapshot.files import DISK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmgr.api.models import CreateMachine
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine, Services
    from vmgr.paths import MachinePaths

__all__ = ["Snapshots"]

_MEMORY_FILES: Final = ("memory", "devices")
_STAGE: Final = ".restore"

log = logging.getLogger(__name__)


class Snapshots:
    """The helper's snapshots."""

    def __init__(self, services: Services, helper: Helper) -> None:
        self._services = services
        self._helper = helper
        self._executor = services.executors.files
        self.files = SnapshotFiles(services.paths.snapshots, services.executors.files)
        self._making: set[tuple[str, str]] = set()
        self.archives = SnapshotArchives(services, helper, self)

    async def reconcile(self) -> None:
        """Learn what there is; remove what interrupted work left."""
        for line in await self.files.open():
            log.info("removed residue: snapshot %s", line)

    def image_users(self) -> list[tuple[str, str, int]]:
        """Which snapshot stands on which image: name, digest, size of its disk."""
        return [
            (f"snapshot {s.name}", s.record.image_digest, s.record.disk_bytes)
            for s in self.files.all()
        ] + self.archives.images

    def kernel_users(self) -> list[str]:
        """The kernel bundles that machines go on with from here."""
        kept = [s.record.kernel_digest for s in self.files.all() if s.record.kernel_digest]
        return kept + self.archives.kernels

    # -- looking --------------------------------------------------------------------------------

    def infos(self, machine: str | None) -> list[SnapshotInfo]:
        """All snapshots, or those of one machine, oldest first."""
        if machine is not None:
            check_name(machine)
        found = self.files.all() if machine is None else self.files.of(machine)
        return [_info(snapshot) for snapshot in found]

    def get(self, reference: str) -> Snapshot:
        """The snapshot that `MACHINE:TAG` names.

        Raises:
            NotFoundError: there is none.
            UsageError: it is not written so.
        """
        machine, tag = split_reference(reference)
        if (snapshot := self.files.find(machine, tag)) is None:
            raise NotFoundError(
                f"there is no snapshot {machine}:{tag}",
                next_step="see those there are with: vmgr snapshot ls",
            )
        return snapshot

    # -- taking ---------------------------------------------------------------------------------

    async def create(self, name: str, tag: str | None) -> SnapshotInfo:
        """Take a snapshot of a machine: with its memory where it runs or is suspended.

        Raises:
            WrongStateError: it is just starting, say.
            ConflictError: there is one of that tag.
            ResourceError: no space left.
            MachineError: it could not be captured; it goes on.
        """
        machine = self._helper.machines.get(name)
        if tag is None:
            taken = {s.record.tag for s in self.files.of(name)}
            taken |= {other for of, other in self._making if of == name}
            tag = made_up_tag(taken, time.time())
        check_tag(tag)
        try:
            with self.making(name, tag):
                async with staging(self.files.root) as stage:
                    async with machine.lock:
                        machine.require("snapshot")
                        check_snapshot(machine)
                        async with nothing_private(machine, "a snapshot"):
                            row = machine.row
                            kernel = await self._fill(machine, stage)
                    snapshot = await self.files.publish(stage, _record(row, tag, kernel))
        except OSError as error:
            raise failed(error, "take a snapshot", self.files.root) from error
        return self.shown(snapshot)

    def check_free(self, machine: str, tag: str) -> None:
        """See that there is no snapshot of that name, nor one being made.

        Raises:
            ConflictError: there is.
        """
        if self.files.find(machine, tag) is not None or (machine, tag) in self._making:
            raise ConflictError(
                f"there is a snapshot {machine}:{tag} already",
                next_step=f"take another tag, or remove it with: vmgr snapshot rm {machine}:{tag}",
            )

    @contextlib.contextmanager
    def making(self, machine: str, tag: str) -> Iterator[None]:
        """Have a name for a snapshot that is being made.

        Raises:
            ConflictError: it is taken.
        """
        self.check_free(machine, tag)
        self._making.add((machine, tag))
        try:
            yield
        finally:
            self._making.discard((machine, tag))

    def shown(self, snapshot: Snapshot) -> SnapshotInfo:
        """Tell of a new snapshot."""
        self._services.events.publish(
            "snapshot.created", snapshot.record.machine, tag=snapshot.record.tag
        )
        return _info(snapshot)

    async def _fill(self, machine: Machine, stage: Path) -> str | None:
        """Copy a machine into `stage`; gives the kernel bundle that its memory goes on with."""
        if machine.status == "running":
            image = await self._helper.images.resolve(machine.row.image_digest)
            await create_disk(image, stage / DISK, machine.row.disk_bytes, self._executor)
            channel = await machine.ready_channel()
            with contextlib.ExitStack() as stack:
                memory, devices = stack.enter_context(saved_files.new_files(stage))
                disk = os.open(stage / DISK, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, disk)
                captured = await capture(
                    machine, channel, memory, devices, self._executor,
                    disk=disk, sync=True, go_on=True,
                )  # fmt: skip
            log.info(
                "machine %s: captured, held for %.0f ms", machine.name, captured.held_seconds * 1e3
            )
            await saved_files.finish(stage, captured.state, self._executor)
            return captured.state.kernel_digest
        in_files = self._services.executors.in_files
        if machine.status != "suspended":
            await in_files(copy_sparse, machine.paths.disk, stage / DISK)
            return None
        # In the snapshot nobody sees any more whether the two belong together.
        if not await self._helper.machines.engine.suspending.still_saved(machine):
            raise StateError(
                f"what machine {machine.name} had in memory does not go with its disk any more",
                next_step=f"boot it, which gives that up, with: vmgr start --cold {machine.name}",
            )
        await in_files(copy_sparse, machine.paths.disk, stage / DISK)
        record = await in_files(_share_memory, machine.paths.saved, stage, None)
        return record.state.kernel_digest

    # -- restoring ------------------------------------------------------------------------------

    async def restore(self, reference: str, *, force: bool) -> Machine:
        """Make a machine what it was: suspended where it ran then, else stopped.

        Raises:
            WrongStateError: it runs, and `force` is not set.
            ConflictError: the machine of that name is another one.
            ResourceError: no space left; then it is as before.
        """
        snapshot = self.get(reference)
        machines = self._helper.machines
        machine = machines.get(snapshot.record.machine)
        if machine.row.id != snapshot.record.machine_id:
            raise ConflictError(
                f"{snapshot.name} came from a file, and is of no machine here"
                if snapshot.record.imported
                else f"{snapshot.name} is of an earlier machine of that name",
                next_step=f"make a new one of it: vmgr create --from {snapshot.name} NEW",
            )
        if force and not machine.stopped.is_set():
            await machines.kill(machine.name)
        async with machine.lock:
            machine.require("restore")
            stage = machine.paths.state / _STAGE
            try:
                await self._services.executors.in_files(_prepare, snapshot, stage)
            except BaseException as error:
                await asyncio.shield(self._services.executors.in_files(_remove, stage))
                if isinstance(error, OSError):
                    raise failed(error, "restore the machine", machine.paths.state) from error
                raise
            await machine.move("restore", restoring=snapshot.record.id)
            await asyncio.shield(self._put(machine, snapshot, stage))
        self._services.events.publish("snapshot.restored", machine.name, tag=snapshot.record.tag)
        return machine

    async def restore_again(self, machine: Machine) -> None:
        """Do once more what an earlier helper did not finish."""
        snapshot = self.files.get(machine.row.restoring or "")
        if snapshot is None:
            await machine.move(
                "restored", reason="the snapshot it was being restored from has gone",
                restoring=None,
            )  # fmt: skip
            return
        stage = machine.paths.state / _STAGE
        try:
            await self._services.executors.in_files(_prepare, snapshot, stage)
        except BaseException:  # half of it would keep a full disk full
            await asyncio.shield(self._services.executors.in_files(_remove, stage))
            raise
        await self._put(machine, snapshot, stage)

    async def _put(self, machine: Machine, snapshot: Snapshot, stage: Path) -> None:
        await self._services.executors.in_files(_replace, stage, machine.paths)
        row = msgspec.convert(snapshot.record.row, MachineRow)
        await machine.move(
            "suspended" if snapshot.has_memory else "restored",
            restoring=None,
            kernel=row.kernel,
            kernel_digest=snapshot.record.kernel_digest or row.kernel_digest,
            pristine=row.pristine,
            # Its disk is none that a template left.
            template=None if not row.pristine else "restored",
            clone=row.clone,
        )
        self._helper.doorbell.follow(machine)

    async def make(self, reference: str, request: CreateMachine) -> Machine:
        """A new machine that begins as a snapshot was; suspended or stopped.

        Raises:
            UsageError: it cannot be as asked.
            ConflictError: the name is taken.
        """
        snapshot = self.get(reference)
        machines = self._helper.machines
        row = _changed(msgspec.convert(snapshot.record.row, MachineRow), snapshot, request)
        name = request.name
        if name is None:
            name = make_up_name({m.name for m in machines.all()})
        volumes = await self._helper.volumes.wanted(request.volumes)
        machine = await machines.add(
            msgspec.structs.replace(
                copied_row(row, name), volumes=volumes, ports=request.ports,
                access=request.access or row.access,
                user=await self._helper.accounts.named(request.user) if request.user else row.user,
                allow=row.allow if request.allow is None else canonical(request.allow),
                host_access=sorted(set(request.host_access)) or row.host_access,
                host_access_udp=sorted(set(request.host_access_udp)) or row.host_access_udp,
                host_commands=rights_of(request.host_commands),
                shares=more_rows(row.shares, request.shares),
            )
        )  # fmt: skip
        async with machine.lock:
            try:
                await self._helper.volumes.confirm(machine)
                stage = machine.paths.state / _STAGE
                await self._services.executors.in_files(_prepare, snapshot, stage)
                await self._services.executors.in_files(_replace, stage, machine.paths)
                await machine.move("suspended" if snapshot.has_memory else "created")
            except OSError as error:
                await asyncio.shield(machines.forget(machine))
                raise failed(error, "make the machine", machine.paths.state) from error
            except BaseException:
                await asyncio.shield(machines.forget(machine))
                raise
            self._helper.doorbell.follow(machine)
        return machine

    # -- removing -------------------------------------------------------------------------------

    async def remove(self, reference: str) -> SnapshotInfo:
        """Remove a snapshot.

        Raises:
            ConflictError: a machine is just being restored from it, or it is being exported.
        """
        snapshot = self.get(reference)
        for machine in self._helper.machines.all():
            if machine.row.restoring == snapshot.record.id:
                raise ConflictError(f"machine {machine.name} is just being restored from it")
        if self.archives.exporting(snapshot):
            raise ConflictError(
                f"{snapshot.name} is just being exported", next_step="wait for that to end"
            )
        await self.files.remove(snapshot)
        self._services.events.publish(
            "snapshot.removed", snapshot.record.machine, tag=snapshot.record.tag
        )
        return _info(snapshot)


def _record(row: MachineRow, tag: str, kernel: str | None) -> SnapshotRecord:
    kept: dict[str, Any] = msgspec.to_builtins(row)
    for gone in ("resync_keys", "vmm_pid", "vmm_start_time", "interface", "status_reason"):
        kept.pop(gone)
    return SnapshotRecord(
        id=secrets.token_hex(6),
        tag=tag,
        machine=row.name,
        machine_id=row.id,
        created_at=time.time(),
        image_digest=row.image_digest,
        disk_bytes=row.disk_bytes,
        kernel_digest=kernel,
        row=kept,
    )


def _changed(row: MachineRow, snapshot: Snapshot, request: CreateMachine) -> MachineRow:
    """What a new machine is to be that begins as `snapshot`.

    Raises:
        UsageError: a machine whose memory was saved cannot have another shape.
    """
    if request.image is not None:
        raise UsageError(
            "a machine from a snapshot has that one's image",
            next_step="leave out --image, or leave out --from",
        )
    if request.disk_bytes not in {None, row.disk_bytes}:
        raise UsageError(
            "a machine from a snapshot has a disk of the same size", next_step="leave out --disk"
        )
    if request.user_data is not None:
        raise UsageError(
            "a machine from a snapshot was set up before", next_step="leave out --user-data"
        )
    cpus, memory = request.cpus or row.cpus, request.memory_bytes or row.memory_bytes
    if snapshot.has_memory and (cpus, memory) != (row.cpus, row.memory_bytes):
        raise UsageError(
            f"{snapshot.name} has a running machine in it, whose CPUs and memory stay",
            next_step="leave out --cpus and --memory",
        )
    return msgspec.structs.replace(row, cpus=cpus, memory_bytes=memory)


def _prepare(snapshot: Snapshot, stage: Path) -> None:
    """Copy into `stage` what a machine is to get; memory is shared, as nobody writes to it."""
    _remove(stage)
    stage.mkdir(mode=0o700)
    copy_sparse(snapshot.disk, stage / DISK)
    if snapshot.has_memory:
        (stage / "saved").mkdir(mode=0o700)
        _share_memory(snapshot.directory, stage / "saved", stage / DISK)


def _share_memory(source: Path, target: Path, disk: Path | None) -> saved_files.SavedMachine:
    record = saved_files.read_record(source)
    for name in _MEMORY_FILES:
        try:
            (target / name).hardlink_to(source / name)
        except OSError:  # another file system
            copy_sparse(source / name, target / name)
    return saved_files.write_record(target, record, disk=disk)


def _replace(stage: Path, paths: MachinePaths) -> None:
    """Give a machine what `_prepare` made; a machine without a disk gets one."""
    _remove(paths.saved)
    (stage / DISK).rename(paths.disk)
    if (stage / "saved").is_dir():
        (stage / "saved").rename(paths.saved)
    stage.rmdir()


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _info(snapshot: Snapshot) -> SnapshotInfo:
    record = snapshot.record
    row = msgspec.convert(record.row, MachineRow)
    return SnapshotInfo(
        name=snapshot.name,
        machine=record.machine,
        tag=record.tag,
        created_at=record.created_at,
        memory=snapshot.has_memory,
        image=row.image,
        image_digest=record.image_digest,
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        disk_bytes=record.disk_bytes,
        size_bytes=snapshot.size_bytes,
    )
