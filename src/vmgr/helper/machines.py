"""All machines: making, finding, starting, stopping, removing them.

Booting and re-adopting are the engine's (`vmgr.helper.engine`); this module holds the order of
steps that
keeps disk, row and process in agreement whatever is killed in between:

- create: the row says `creating` before the first file exists, `stopped` once all do;
- start: the row says `starting` before the VMM exists, and names it as soon as it does;
- remove: the row says `removing` before the first file goes, and goes last.

Reconciling after a crash (`vmgr.helper.reconcile`) reads these backwards.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.models import (
    CreateMachine,
    MachineInfo,
    MachineRemoved,
    StopReport,
    TemplateInfo,
)
from vmgr.errors import (
    ConflictError,
    NotFoundError,
    ResourceError,
    UsageError,
    VmgrError,
    WrongStateError,
)
from vmgr.helper.abandoned import Abandoned
from vmgr.helper.commitment import Commitment, host_memory
from vmgr.helper.engine import Engine
from vmgr.helper.forking import Forking
from vmgr.helper.hostcalls import rights_of
from vmgr.helper.machine import Machine, Services
from vmgr.helper.ports import check_ports
from vmgr.helper.reconcile import reconcile
from vmgr.helper.shares import share_rows
from vmgr.helper.store import MachineRow
from vmgr.helper.userdata import check_user_data
from vmgr.image import create_disk
from vmgr.machine.names import check_name, make_up_name
from vmgr.machine.sizes import format_size
from vmgr.network import canonical
from vmgr.network.addresses import free_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from vmgr.agent import AgentChannel, Job, JobSink
    from vmgr.api.models import ExecSpec, StopMachine
    from vmgr.helper.helper import Helper
    from vmgr.helper.tasks import Tasks
    from vmgr.image import Image
    from vmgr.vmm import VmmExit

    Progress = Callable[[str, float | None], None]

__all__ = ["Machines"]

MAX_MACHINES: Final = 1_000
_SAVED: Final = {"suspended", "snapshot"}

log = logging.getLogger(__name__)


def no_progress(_message: str, _fraction: float | None) -> None:
    """For callers that nobody watches."""


class Machines:
    """The helper's machines, by name."""

    def __init__(self, services: Services, tasks: Tasks, helper: Helper) -> None:
        self._services = services
        self._tasks = tasks
        self._helper = helper
        self._machines: dict[str, Machine] = {}
        self.abandoned = Abandoned()
        self.forking = Forking(services, helper)
        self.engine = Engine(services, helper.watchers, helper, self.vmm_ended)
        self._commitment = Commitment(self._machines.values)

    # -- finding ---------------------------------------------------------------------------

    def get(self, name: str) -> Machine:
        """The machine of that name.

        Raises:
            NotFoundError: there is none.
            UsageError: it cannot be a machine's name.
        """
        check_name(name)
        if (machine := self._machines.get(name)) is None:
            raise NotFoundError(
                f"there is no machine named {name}",
                next_step="see those there are with: vmgr ls",
                details={"machine": name},
            )
        return machine

    def all(self) -> list[Machine]:
        """All machines, oldest first."""
        return sorted(self._machines.values(), key=lambda m: (m.row.created_at, m.row.id))

    def count(self, status: str | None = None) -> int:
        """How many there are, or are in `status`."""
        seen = [m for m in self._machines.values() if not m.row.pooled]
        return sum(status in {None, m.status} for m in seen)

    def image_users(self) -> Iterable[tuple[str, str, int]]:
        """Which machine uses which image: name, digest, size of its disk."""
        return [(m.name, m.row.image_digest, m.row.disk_bytes) for m in self._machines.values()]

    def kernel_users(self) -> Iterable[str]:
        """The kernel bundles that machines go on with; one that is stopped takes the newest."""
        machines = [m for m in self._machines.values() if m.status != "stopped"]
        return [m.row.kernel_digest for m in machines if m.row.kernel_digest]

    async def infos(self) -> list[MachineInfo]:
        """All machines, oldest first."""
        machines = [m for m in self.all() if not m.row.pooled]
        return await self._services.executors.in_files(lambda: [m.info() for m in machines])

    async def info(self, name: str) -> MachineInfo:
        """One machine."""
        return await self._services.executors.in_files(self.get(name).info)

    # -- making ---------------------------------------------------------------------------

    async def create(self, request: CreateMachine, *, pooled: bool = False) -> Machine:
        """Make a machine; it is stopped.

        Args:
            pooled: nobody is to see it until somebody takes it.

        Raises:
            ConflictError: the name is taken.
            NotFoundError: there is no such image.
            UsageError, ResourceError: it cannot be as asked.
        """
        name = self._free_name(request.name)
        check_ports(request.ports)
        await self._helper.policies.check(request)
        await self._helper.shares.check(request.shares)
        if request.snapshot is not None:
            return await self._helper.snapshots.make(request.snapshot, request)
        row, image = await self._row(request, name)
        machine = await self.add(msgspec.structs.replace(row, pooled=pooled))
        async with machine.lock:
            try:
                await self._helper.volumes.confirm(machine)
                template = await self._make_disk(machine, image)
                await machine.move("created", template=template)
            except BaseException:
                await asyncio.shield(self.forget(machine))
                raise
        return machine

    def has(self, name: str) -> bool:
        """Whether there is a machine of that name."""
        return name in self._machines

    def check_free(self, name: str) -> None:
        """See that a new machine can have `name`.

        Raises:
            UsageError: it is none.
            ConflictError: it is taken.
        """
        self._free_name(name)

    async def add(self, row: MachineRow) -> Machine:
        """Begin to make a machine: its row, with a number in the network, and its directory.

        Raises:
            ConflictError: the name is taken.
            ResourceError: there are too many machines, or no space is left.
        """
        self.check_free(row.name)
        if len(self._machines) >= MAX_MACHINES:
            raise ResourceError(
                f"there are {MAX_MACHINES} machines already", next_step="remove some with: vmgr rm"
            )
        number = free_number(m.row.number for m in self._machines.values())
        machine = Machine(self._services, msgspec.structs.replace(row, number=number))
        self._machines[row.name] = machine
        try:
            await machine.save()
            await self._services.executors.in_files(
                machine.paths.state.mkdir, mode=0o700, parents=True
            )
        except BaseException:
            await asyncio.shield(self.forget(machine))
            raise
        return machine

    async def _row(self, request: CreateMachine, name: str) -> tuple[MachineRow, Image]:
        """What a new machine is to be, and its image."""
        config = await self._helper.settings()
        memory = request.memory_bytes or int(config.get("machine.memory"))
        self._check_memory(memory)
        reference = request.image or str(config.get("image.default"))
        image = await self._helper.images.resolve(reference)
        if request.user_data is not None:
            check_user_data(request.user_data, reference, image)
        row = MachineRow(
            id=secrets.token_hex(6),
            name=name,
            status="creating",
            image=reference,
            image_digest=image.digest,
            init=image.init,
            default_user=image.default_user,
            user=self._helper.accounts.wanted(request, image, config),
            user_data=request.user_data,
            placed="",
            env=image.env,
            cpus=request.cpus or int(config.get("machine.cpus")),
            memory_bytes=memory,
            disk_bytes=request.disk_bytes or int(config.get("machine.disk")),
            ports=request.ports,
            shares=share_rows(request.shares),
            auto_ports=request.auto_ports,
            volumes=await self._helper.volumes.wanted(request.volumes),
            ephemeral=request.ephemeral,
            pristine=True,
            # A template's machine has booted already, without the user-data.
            cold=request.cold or request.user_data is not None,
            access=request.access
            or ("internet" if request.ephemeral else str(config.get("network.access"))),
            allow=None if request.allow is None else canonical(request.allow),
            host_access=sorted(set(request.host_access)),
            host_access_udp=sorted(set(request.host_access_udp)),
            host_commands=rights_of(request.host_commands),
            created_at=time.time(),
        )
        self._check_cpus(row.cpus)
        return row, image

    async def build_template(self, request: CreateMachine, progress: Progress) -> TemplateInfo:
        """Build the template that machines like this start from; a missing image first.

        Raises:
            VmgrError: it could not be built.
        """
        config = await self._helper.settings()
        await self._helper.images.ensure(
            request.image or str(config.get("image.default")), progress
        )
        row, _ = await self._row(request, "template")
        return await self._helper.templates.build(row, progress)

    async def _make_disk(self, machine: Machine, image: Image) -> str | None:
        """Make a new machine's disk; gives the id of the template that it is a copy of."""
        row = machine.row
        ready = None if row.cold else await self._helper.templates.find(row)
        if ready is None:
            await create_disk(
                image, machine.paths.disk, row.disk_bytes, self._services.executors.files
            )
            await machine.note_disk()
            return None
        try:
            await self._helper.templates.copy_disk(ready, machine.paths.disk)
            await machine.note_disk()
        finally:
            ready.close()
        return ready.template.record.id

    def _free_name(self, wanted: str | None) -> str:
        if wanted is None:
            return make_up_name(self._machines)
        check_name(wanted)
        if wanted in self._machines:
            raise _taken(wanted)
        return wanted

    def _check_memory(self, memory: int) -> None:
        if memory > (total := host_memory()):
            raise UsageError(
                f"a machine of {format_size(memory)} memory does not fit this host's "
                f"{format_size(total)}",
                next_step="ask for less with --memory",
            )

    def _check_cpus(self, cpus: int) -> None:
        # QEMU runs more vCPUs than the host has, but only slower than without them.
        available = len(os.sched_getaffinity(0))
        if cpus > 4 * available:
            raise UsageError(
                f"a machine of {cpus} CPUs is too much for this host's {available}",
                next_step=f"ask for at most {4 * available} with --cpus",
            )

    # -- starting, stopping ------------------------------------------------------------------

    async def start(
        self, name: str, progress: Progress = no_progress, *, cold: bool = False
    ) -> Machine:
        """Start a machine and wait until it is ready; one that runs is left as it is.

        Args:
            cold: boot it, also where it could start from a template.

        Raises:
            WrongStateError: it is being removed, say.
            BootError, ResourceError, UnsupportedError: it does not start.
        """
        machine = self.get(name)
        async with machine.lock:
            if machine.status == "running":
                await machine.unstick()
                return machine
            machine.require("start")
            await self._begin(machine, progress, cold=cold)
        return machine

    async def _begin(
        self, machine: Machine, progress: Progress = no_progress, *, cold: bool = False
    ) -> None:
        """Start a machine, or let it go on. The caller holds its lock."""
        with self.promised([machine], await self.overcommit()):
            await self.engine.start(machine, progress, cold=cold)

    def promised(self, machines: Sequence[Machine], percent: int) -> AbstractContextManager[None]:
        """Promise machines their memory while they start; see `vmgr.helper.commitment`."""
        return self._commitment.promised(machines, percent)

    async def overcommit(self) -> int:
        """How much of this computer's memory may be promised, in percent."""
        return int((await self._helper.settings()).get("memory.overcommit"))

    async def awake(self, machine: Machine) -> Machine:
        """Let a suspended machine go on; others are as they are."""
        waking = machine.status == "starting" and machine.row.started_from in _SAVED
        if waking or machine.status in {"suspending", "suspended", "restoring"}:
            async with machine.lock:
                if machine.status == "suspended":
                    await self._begin(machine)
        return machine

    async def suspend(self, name: str) -> Machine:
        """Save a running machine's memory and end its VMM; one that is suspended is left as it is.

        Raises:
            WrongStateError: it does not run.
            ResourceError, MachineError: it could not be saved, and goes on.
        """
        machine = self.get(name)
        async with machine.lock:
            if machine.status != "suspended":
                await self.engine.suspending.suspend(machine)
        return machine

    async def resume(self, name: str, progress: Progress = no_progress) -> Machine:
        """Let a suspended machine go on; one that runs is left as it is.

        Raises:
            WrongStateError: it is neither.
        """
        machine = self.get(name)
        async with machine.lock:
            if machine.status == "stopped":
                raise WrongStateError(
                    f"machine {name} is stopped, so there is nothing to go on with",
                    next_step=f"start it with: vmgr start {name}",
                )
            if machine.status == "running":
                await machine.unstick()
            else:
                machine.require("start")
                await self._begin(machine, progress)
        return machine

    async def _drop_saved(self, machine: Machine, reason: str) -> None:
        """Give up what a suspended machine had in memory. The caller holds its lock."""
        await machine.move("drop", reason=reason)
        self._helper.doorbell.release(machine)
        await self.engine.suspending.drop(machine)

    async def stop(self, name: str, request: StopMachine) -> StopReport:
        """Stop a machine in an orderly way; one that is stopped is left as it is.

        A suspended one goes on first: what it has not written yet is not to be lost.
        """
        machine = self.get(name)
        async with machine.lock:
            if machine.status == "suspended":
                await self._begin(machine)
            if machine.stopped.is_set():
                return StopReport(machine=name, method="already-stopped", seconds=0)
            machine.require("stop")
            return await self.engine.stop(machine, request)

    async def kill(self, name: str) -> StopReport:
        """End a machine's VMM at once, also while it starts or stops.

        Raises:
            WrongStateError: there is none.
        """
        machine = self.get(name)
        machine.require("kill")
        if machine.status == "suspended":
            async with machine.lock:
                if machine.status == "suspended":
                    await self._drop_saved(machine, "killed by vmgr kill")
                    return StopReport(machine=name, method="kill", seconds=0)
        return await self.engine.kill(machine, "killed by vmgr kill")

    async def stop_all(self) -> None:
        """Stop every machine, all at once."""
        from vmgr.api.models import StopMachine

        names = [m.name for m in self.all() if not m.stopped.is_set()]
        results = await asyncio.gather(
            *(self.stop(name, StopMachine()) for name in names), return_exceptions=True
        )
        for name, result in zip(names, results, strict=True):
            if isinstance(result, BaseException):
                log.error("machine %s did not stop: %s", name, result)

    async def vmm_ended(self, machine: Machine, ended: VmmExit) -> None:
        """The engine tells that a machine's VMM has ended by itself or as asked."""
        rebooting = (
            ended.cause == "reboot" and machine.status == "running" and machine.kill_reason is None
        )
        suspended = machine.saved_whole and machine.kill_reason is None
        if not suspended:
            suspended = await self.engine.suspending.can_again(machine)
        await self._helper.network.unplug(machine.row.id)
        if suspended:
            # Before anybody hears of it: whoever knows that it sleeps may wake it.
            self._helper.doorbell.hold(machine)
        await machine.move(
            "suspended" if suspended else "vmm-exited",
            reason=None if suspended else machine.kill_reason or ended.reason,
            vmm_pid=None,
            vmm_start_time=None,
            interface=None,
        )
        if machine.row.ephemeral:
            # On its own: whoever holds the lock (a stop, say) may wait for us.
            self._start_discard(machine)
        elif rebooting:
            try:
                await self.start(machine.name)
            except VmgrError as error:
                log.warning("machine %s did not come back from a reboot: %s", machine.name, error)

    # -- using ------------------------------------------------------------------------------

    async def exec(self, machine: Machine, spec: ExecSpec, sink: JobSink) -> Job:
        """Start a command in a machine.

        Raises:
            WrongStateError: it does not run.
            ExecError: the command could not be started.
        """
        await self.awake(machine)
        # Nothing is awaited in between: who suspends it now waits until the command has begun.
        with machine.entered():
            return await self.engine.exec(machine, spec, sink)

    async def channel(self, machine: Machine) -> AgentChannel:
        """The way into a machine; one that is suspended goes on.

        Raises:
            WrongStateError: it does not run.
        """
        return await (await self.awake(machine)).ready_channel()

    # -- removing ---------------------------------------------------------------------------

    async def remove(self, name: str, *, force: bool) -> MachineRemoved:
        """Remove a machine and its disk.

        Raises:
            WrongStateError: it runs, and `force` is not set.
        """
        machine = self.get(name)
        if force and not machine.stopped.is_set():
            await self._end_vmm(machine, "killed by vmgr rm")
        async with machine.lock:
            if not machine.stopped.is_set() and force:
                await self._end_vmm(machine, "killed by vmgr rm")
            if force and machine.status == "suspended":
                await self._drop_saved(machine, "removed")
            machine.require("remove")
            return await self._remove(machine)

    async def discard(self, machine: Machine) -> None:
        """Remove an ephemeral machine, whatever it does; once is enough.

        Goes on when the caller is cancelled: half a removal would be one that nobody finishes.
        """
        self.abandoned.claim(machine.name)
        await asyncio.shield(self._start_discard(machine))

    def _start_discard(self, machine: Machine) -> asyncio.Task[None]:
        return self._tasks.start(self._discard(machine), name=f"discard {machine.name}")

    async def _discard(self, machine: Machine) -> None:
        self.abandoned.claim(machine.name)
        try:
            await self._helper.volumes.let_go(machine)
            if not machine.stopped.is_set():
                await self._end_vmm(machine, "its command has ended")
            async with machine.lock:
                if self._machines.get(machine.name) is not machine:
                    return
                if not machine.stopped.is_set():  # started again meanwhile
                    await self._end_vmm(machine, "its command has ended")
                await self._remove(machine)
        except VmgrError as error:
            # The disk is full, say. The next helper removes what is left.
            log.error("machine %s is not removed: %s", machine.name, error)  # noqa: TRY400

    async def _end_vmm(self, machine: Machine, reason: str) -> None:
        try:
            await self.engine.kill(machine, reason)
        except WrongStateError:
            return  # it ended meanwhile

    async def _remove(self, machine: Machine) -> MachineRemoved:
        used = (await self._services.executors.in_files(machine.info)).disk_used_bytes or 0
        await machine.move("remove")
        await self.forget(machine)
        return MachineRemoved(machine=machine.name, freed_bytes=used)

    async def forget(self, machine: Machine) -> None:
        """Delete a machine's files, then its row."""
        for directory in (machine.paths.runtime, machine.paths.state):
            await self._services.executors.in_files(shutil.rmtree, directory, ignore_errors=True)
        await self._services.executors.in_store(self._services.store.delete_machine, machine.row.id)
        self._helper.doorbell.release(machine)
        if self._machines.get(machine.name) is machine:
            del self._machines[machine.name]
        self._services.events.publish("machine.removed", machine.name)

    # -- after a crash ------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Bring rows, files and processes in agreement; see `vmgr.helper.reconcile`."""
        rows = await self._services.executors.in_store(self._services.store.machines)
        for row in rows:
            self._machines[row.name] = Machine(self._services, row)
        for machine in self.all():
            if machine.row.number is None:  # made before machines had a network
                number = free_number(m.row.number for m in self._machines.values())
                await machine.save(number=number)
        await reconcile(self._services, self.all(), self.engine, self.forget, self._helper.watchers)
        for machine in self.all():
            if machine.row.ephemeral:
                self.abandoned.wait(
                    machine.name,
                    lambda one=machine: (  # type: ignore[misc]
                        self._helper.stopping.is_set() or self._start_discard(one)
                    ),
                )
            if machine.status == "suspended":
                self._helper.doorbell.hold(machine)
            if machine.status == "restoring":
                await machine.lock.acquire()
                self._tasks.start(self._restore_again(machine), name=f"restore {machine.name}")

    async def _restore_again(self, machine: Machine) -> None:
        """Finish what a helper that died had begun; the lock is held, and let go of at the end."""
        try:
            await self._helper.snapshots.restore_again(machine)
        except (OSError, VmgrError) as error:
            log.warning("machine %s is not restored: %s", machine.name, error)
            reason = f"restoring it was broken off: {error}"
            await machine.move("restored", reason=reason, restoring=None)
        finally:
            machine.lock.release()

    async def let_go(self) -> None:
        """Close the connections to all machines; they go on."""
        self.abandoned.close()
        await asyncio.gather(*(self.engine.let_go(m) for m in self.all()))


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"there is a machine named {name} already",
        next_step=f"take another name, or remove it with: vmgr rm {name}",
    )
