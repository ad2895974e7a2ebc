"""Starting a machine: from where it or another one was saved where it can, else by a boot.

A suspended machine goes on where it stood. One that never ran goes on where a template of its kind
stands, if there is one. All others boot, and so does one that does not come up from what was saved.
Either way the person's first command finds a machine that knows who it is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vmgr.errors import MachineError, StateError, UnfitStateError, VmgrError
from vmgr.helper.hostkeys import make_host_keys
from vmgr.helper.reconcile import host_boot_id
from vmgr.helper.userdata import look_for_cloud_init, seed_of
from vmgr.helper.volumes import VolumeError
from vmgr.image import base_of, create_disk
from vmgr.vmm import LAYOUT, RECLAIM, SHARE_PORTS, BootPolicy, Restore, Vmm, VmmSpec, boot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vmgr.agent import AgentChannel, AgentHello
    from vmgr.api.models import StartedFrom
    from vmgr.helper.engine import Engine
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine, Services
    from vmgr.helper.plugging import Plugging
    from vmgr.helper.suspending import Suspending
    from vmgr.helper.templates import Ready
    from vmgr.kernel import KernelBundle
    from vmgr.sandbox import Sandbox
    from vmgr.saved import SavedVolume
    from vmgr.vmm import Accelerator, Qemu

    Progress = Callable[[str, float | None], None]

__all__ = ["Origin", "Starting"]

ENTROPY_BYTES: Final = 256
# A restored machine answers within a tenth of a second; one that does not is booted instead.
_RESTORE_POLICY: Final = BootPolicy(silence=20.0, deadline=20.0, attempts=1)

# Of a virtio-serial device; what was saved may be from a stranger.
_MOST_SHARE_PORTS: Final = 29

# In place of a template's id, while a machine that never ran starts for the first time.
_WRITTEN_TO: Final = "written to"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a machine goes on instead of booting."""

    started_from: StartedFrom
    restore: Restore
    resync_keys: Sequence[bytes]
    kernel: KernelBundle
    """The one that it runs, whose modules it has open."""
    machine_type: str
    share_ports: int
    """How many ports for shares it has."""
    layout: int
    """Which devices it has, see `vmgr.vmm.LAYOUT`."""
    saved_under: str | None = None
    """The version of QEMU that saved it, where that may be another one than runs it now."""
    volumes: Sequence[SavedVolume] = ()
    """Those that it had."""
    given_up: Callable[[VmgrError], Awaitable[None]] | None = None
    """Awaited when it does not go on from here, before it boots; None: then its start fails."""


@dataclass(frozen=True)
class _Host:
    """What a machine is started with."""

    qemu: Qemu
    accelerator: Accelerator
    sandbox: Sandbox


class Starting:
    """Starts machines for the engine, which looks after them from then on."""

    def __init__(
        self,
        services: Services,
        helper: Helper,
        engine: Engine,
        plugging: Plugging,
        suspending: Suspending,
    ) -> None:
        self._services = services
        self._helper = helper
        self._engine = engine
        self._plugging = plugging
        self._suspending = suspending
        self._host_boot_id: str | None = None

    async def start(self, machine: Machine, progress: Progress, *, cold: bool = False) -> None:
        """Start a machine that has no VMM and wait until it is ready. The caller holds its lock.

        Args:
            cold: boot it in any case; what a suspended one had in memory is given up.

        Raises:
            BootError: it never became ready.
            VmgrError: it could not be started; the machine is stopped, with the reason, or
                suspended as before.
        """
        if machine.status == "suspended":
            await self._resume(machine, progress, cold=cold)
        elif machine.row.pristine:
            await self._first_start(machine, progress, cold=cold or machine.row.cold)
        else:
            await self.begin(machine, None, progress)

    # -- where from ---------------------------------------------------------------------------

    async def _first_start(self, machine: Machine, progress: Progress, *, cold: bool) -> None:
        ready = None if cold else await self._helper.templates.find(machine.row)
        try:
            try:
                await self._fit_disk(machine, ready)
            except UnfitStateError as error:
                log.info("machine %s boots: %s", machine.name, error.message)
                if ready is not None:
                    ready.close()
                    ready = None
                await self._fit_disk(machine, None)
            origin = None if ready is None else await self._of_template(machine, ready, progress)
            await self.begin(machine, origin, progress)
        finally:
            if ready is not None:
                ready.close()
        # Only first starts use templates, so a machine that booted again says nothing of the next.
        if machine.row.started_from == "boot":
            await self._helper.templates.wanted(machine.row)

    async def _of_template(self, machine: Machine, ready: Ready, progress: Progress) -> Origin:
        async def boot_instead(error: VmgrError) -> None:
            # Its disk is a new one: nothing of a person's has run on it.
            log.warning("machine %s boots, as its template failed: %s", machine.name, error)
            await self._helper.templates.distrust(ready, error.message)
            await self._fit_disk(machine, None)

        saved = ready.template.record.saved
        return Origin(
            "template", ready.restore, saved.resync_keys,
            await self._helper.images.kernel(progress), saved.machine_type, saved.share_ports,
            saved.layout, given_up=boot_instead,
        )  # fmt: skip

    async def _fit_disk(self, machine: Machine, ready: Ready | None) -> None:
        """Make the disk of a machine that never ran what it will start from.

        Whatever a start that failed has left on it is gone then: a restored memory would not match
        it, and nothing of a person's is there. The same goes for a disk that somebody else, or
        something, has touched.
        """
        wanted = None if ready is None else ready.template.record.id
        if machine.row.template == wanted and await machine.has_disk_as_made():
            return
        if ready is not None:
            await self._helper.templates.copy_disk(ready, machine.paths.disk)
        else:
            image = await self._helper.images.resolve(machine.row.image_digest)
            await create_disk(
                image, machine.paths.disk, machine.row.disk_bytes, self._services.executors.files
            )
        await machine.note_disk()
        await machine.save(template=wanted)

    async def _resume(self, machine: Machine, progress: Progress, *, cold: bool) -> None:
        if cold:
            log.info("machine %s boots, as was asked for: what ran in it is gone", machine.name)
            await self._suspending.drop(machine)
            await self.begin(machine, None, progress)
            return
        try:
            loaded = await self._suspending.load(machine)
        except UnfitStateError as error:
            await self._lost(machine, error)
            await self.begin(machine, None, progress)
            return
        except VmgrError as error:
            # It is there, and may be read another time: what runs in the machine is not given up.
            raise _still_suspended(machine, error) from error
        try:
            saved = loaded.record.state
            try:
                kernel = await self._helper.images.kernel_of(saved.kernel_digest)
            except VmgrError as error:
                await self._lost(machine, error)
                await self.begin(machine, None, progress)
                return
            origin = Origin(
                "snapshot" if machine.row.clone else "suspended",
                Restore(loaded.memory, loaded.devices),
                saved.resync_keys,
                kernel,
                saved.machine_type,
                saved.share_ports,
                saved.layout,
                saved.qemu,
                saved.volumes,
                lambda error: self._lost(machine, error),
            )
            await self.begin(machine, origin, progress, accelerator=saved.accelerator)
        finally:
            loaded.close()
        # Later than the row: a helper that finds both takes the machine for running.
        remove = await self._suspending.leave(machine)
        self._helper.tasks.start(remove(), name=f"saved memory of {machine.name}")

    async def _lost(self, machine: Machine, error: VmgrError) -> None:
        """A suspended machine boots instead of going on; say what that costs."""
        log.warning("machine %s boots, as it cannot go on: %s", machine.name, error.message)
        self._services.events.publish("machine.resume-failed", machine.name, reason=error.message)
        self._helper.tell(
            f"machine {machine.name} was started anew: {error.message}; its disk is as it was, "
            "what ran in it is lost"
        )
        await self._suspending.drop(machine)

    # -- starting -------------------------------------------------------------------------------

    async def begin(
        self,
        machine: Machine,
        origin: Origin | None,
        progress: Progress,
        *,
        accelerator: str | None = None,
    ) -> None:
        """Start a machine from `origin` or by a boot; as `start`.

        Args:
            accelerator: the one that `origin` was saved under; it goes on under no other.
        """
        await self._helper.volumes.ready(machine, machine.row.volumes)
        qemu = await self._engine.qemu()
        kernel = origin.kernel if origin else await self._helper.images.kernel(progress)
        host = _Host(
            qemu,
            await self._engine.accelerator(kernel.kernel),
            await self._engine.sandbox(await self._helper.settings()),
        )
        if origin is not None and (why := _unfit(origin, host, accelerator)) is not None:
            if origin.given_up is None:
                raise why
            await origin.given_up(why)
            origin = None
        progress(f"starting {machine.name}", None)
        began = time.time()
        machine.kill_reason = None
        boot_id = await self._boot_id()
        with self._helper.volumes.claiming(machine, machine.row.volumes):
            await machine.move(
                "start",
                started_at=began,
                host_boot_id=boot_id,
                accelerator=host.accelerator.name,
                sandbox=host.sandbox.level,
                boot_id=None,
                # From here on the disk is like no template, and like its image no more.
                template=_WRITTEN_TO if machine.row.pristine else None,
                **_beginning(origin, kernel, qemu),
            )
        try:
            if origin is None or not await self._restored(machine, origin, host, progress):
                await self._boot(machine, host, progress)
            await machine.move(
                "ready", boot_seconds=time.time() - began, pristine=False, template=None,
                clone=False, boot_id=machine.greeting.boot_id, booted_init=machine.greeting.init,
            )  # fmt: skip
        except BaseException as error:
            await asyncio.shield(self._failed(machine, error))
            raise
        assert machine.vmm is not None  # noqa: S101 (it has been brought up)
        self._helper.doorbell.release(machine)
        self._engine.started(machine, machine.vmm)
        if machine.row.user_data is not None and origin is None:
            self._helper.watchers.start(
                look_for_cloud_init(machine, self._helper), name=f"cloud-init of {machine.name}"
            )
        if machine.wants_host_keys:
            self._helper.watchers.start(
                make_host_keys(machine), name=f"host keys of {machine.name}"
            )

    async def _failed(self, machine: Machine, error: BaseException) -> None:
        """A start came to nothing: the machine is what it was before, if it can be that."""
        vmm, machine.vmm = machine.vmm, None
        self._helper.ports.ended(machine)
        self._helper.shares.ended(machine)
        if machine.channel is not None:
            machine.channel.close()
            machine.channel = None
        if vmm is not None:
            await _end(vmm, "its start failed")
        reason = machine.kill_reason or _one_sentence(error)
        resumable = machine.row.started_from in {"suspended", "snapshot"}
        if resumable and machine.kill_reason is None:
            resumable = await self._suspending.still_saved(machine)
        await machine.move(
            "suspended" if resumable else "vmm-exited",
            reason=reason, vmm_pid=None, vmm_start_time=None,
        )  # fmt: skip
        self._helper.doorbell.follow(machine)

    async def _boot(self, machine: Machine, host: _Host, progress: Progress) -> None:
        config = await self._helper.settings()
        policy = BootPolicy(
            silence=float(config.get("boot.silence_timeout")),
            deadline=float(config.get("boot.timeout")),
        )
        kernel = await self._helper.images.kernel(progress)
        spec = replace(await self._spec(machine, kernel), kernel_parameters=(RECLAIM,))
        await self._bring_up(machine, spec, host, policy)

    async def _restored(
        self, machine: Machine, origin: Origin, host: _Host, progress: Progress
    ) -> bool:
        """Let it go on from `origin`; False when that does not work and it is to boot."""
        spec = replace(
            await self._spec(machine, origin.kernel),
            restore=origin.restore, machine_type=origin.machine_type,
            share_ports=origin.share_ports,
        )  # fmt: skip
        policy = _RESTORE_POLICY
        if origin.started_from != "template":
            # What a boot would cost is all that ran in it: a busy host gets its time.
            patience = float((await self._helper.settings()).get("boot.timeout"))
            policy = BootPolicy(silence=patience, deadline=patience, attempts=1)
        try:
            await self._bring_up(machine, spec, host, policy, origin.volumes)
        except VolumeError:
            raise  # a boot would not help
        except MachineError as error:
            # All other errors are the host's: a boot would meet them too, and what was saved is
            # as good as before.
            if machine.kill_reason is not None or origin.given_up is None:
                raise
            await origin.given_up(_not_read(error, origin, host.qemu))
        else:
            return True
        kernel = await self._helper.images.kernel(progress)
        await machine.save(vmm_pid=None, vmm_start_time=None, **_beginning(None, kernel, host.qemu))
        return False

    async def _bring_up(
        self,
        machine: Machine,
        spec: VmmSpec,
        host: _Host,
        policy: BootPolicy,
        had: Sequence[SavedVolume] = (),
    ) -> None:
        """Start the VMM and wait until its agent answers and knows which machine it is in.

        Where that fails the VMM has ended.
        """
        keys = machine.row.resync_keys

        async def start(verbose: bool) -> Vmm:  # noqa: FBT001 (the interface of `boot`)
            async with (
                self._plugging.place(machine) as network,
                self._helper.volumes.opened(machine, had) as volumes,
            ):
                vmm = await Vmm.start(
                    replace(spec, network=network, volumes=volumes), machine.paths, host.qemu,
                    host.accelerator, self._services.executors.files, sandbox=host.sandbox,
                    verbose=verbose,
                )  # fmt: skip
            machine.vmm = vmm
            try:
                # Named in the row at once: a helper that dies now must find it.
                await machine.save(vmm_pid=vmm.pid, vmm_start_time=vmm.start_time, resync_keys=keys)
            except BaseException:
                await asyncio.shield(_end(vmm, "it could not be written down"))
                raise
            if machine.kill_reason is not None:  # `kill` came before there was anything to kill
                await vmm.kill(machine.kill_reason, at_once=True)
            return vmm

        async def hello(vmm: Vmm) -> tuple[AgentChannel, AgentHello]:
            del vmm
            channel = await self._engine.connect(machine)
            try:
                return channel, await channel.hello()
            except BaseException:
                channel.close()
                raise

        def failed_boot(*, attempt: int, reason: str) -> None:
            self._services.events.publish(
                "machine.boot-failed", machine.name, attempt=attempt, reason=reason
            )

        try:
            booted = await boot(machine.name, start, hello, policy, on_failed_boot=failed_boot)
        except BaseException:
            machine.vmm = None
            raise
        channel, greeting = booted.hello
        try:
            await self.introduce(machine, channel, greeting)
            await self._helper.host_calls.tell(machine, channel, greeting.features)
        except BaseException:
            machine.vmm = None
            channel.close()
            await asyncio.shield(_end(booted.vmm, "its agent did not answer"))
            raise
        machine.connected(channel, greeting)

    async def introduce(
        self, machine: Machine, channel: AgentChannel, greeting: AgentHello
    ) -> None:
        """Tell a machine who it is, before anything of the person's runs in it."""
        assert machine.vmm is not None  # noqa: S101 (its agent has answered)
        await self._helper.volumes.bring(machine, machine.vmm, channel, greeting)
        entropy = secrets.token_bytes(ENTROPY_BYTES)
        started_from = machine.row.started_from
        # One that was copied is to become another than what it was copied from.
        another = machine.row.clone or started_from == "template"
        has_init = greeting.init != "agent"
        machine_id = uuid.uuid4().hex if another and has_init else None
        if started_from == "boot":
            # The emulated clock chip counts whole seconds.
            await channel.clock(time.time_ns())
            configured = await channel.configure(
                hostname=machine.name, entropy=entropy, machine_id=machine_id, renew=another
            )
            machine.wants_host_keys = configured.sshd
            await self._plugging.tell(machine, channel)
            await self._helper.shares.attach(machine, channel)
            return
        # What runs in it goes on with its files.
        await self._helper.shares.attach(machine, channel)
        if another:
            await self._plugging.tell(machine, channel)
        else:
            # It has its addresses, and connections on them.
            await self._plugging.open_ports(machine)
        configured = await channel.configure(
            hostname=machine.name,
            entropy=entropy,
            machine_id=machine_id,
            realtime_ns=time.time_ns(),
            renew=another,
            thaw=True,
        )
        machine.wants_host_keys = configured.sshd

    async def _spec(self, machine: Machine, kernel: KernelBundle) -> VmmSpec:
        row = machine.row
        image = await self._helper.images.resolve(row.image_digest)
        return VmmSpec(
            machine_id=row.id,
            name=row.name,
            cpus=row.cpus,
            memory_bytes=row.memory_bytes,
            kernel=kernel.kernel,
            initramfs=kernel.initramfs,
            modules=kernel.modules,
            seed=await seed_of(machine, self._helper),
            disk=machine.paths.disk,
            backing=(base_of(image, row.disk_bytes),),
            init=row.init,
            counter_khz=await self._engine.counter_khz(),
        )

    async def _boot_id(self) -> str:
        if self._host_boot_id is None:
            self._host_boot_id = await self._services.executors.in_files(host_boot_id)
        return self._host_boot_id


def _still_suspended(machine: Machine, error: VmgrError) -> VmgrError:
    return type(error)(
        f"machine {machine.name} does not go on and stays suspended: {error.message}",
        next_step=f"{error.next_step or 'try again'}; or give up what runs in it with: "
        f"vmgr start --cold {machine.name}",
        details=error.details,
    )


def _unfit(origin: Origin, host: _Host, accelerator: str | None) -> StateError | None:
    """Why a machine cannot go on here, where that is known before its VMM tries."""
    if accelerator not in {None, host.accelerator.name}:
        return StateError(f"it was saved under {accelerator}, and this host has none now")
    if origin.layout != LAYOUT:
        return StateError("it was saved by another version of vmgr, whose machines differ")
    if not 0 <= origin.share_ports <= _MOST_SHARE_PORTS:
        return StateError("what is said of its ports for shares is wrong")
    if not host.qemu.knows(origin.machine_type):
        by = f" by QEMU {origin.saved_under}" if origin.saved_under else ""
        return StateError(
            f"it was saved{by} as a {origin.machine_type}, which QEMU {host.qemu.version} "
            "does not know"
        )
    return None


def _beginning(origin: Origin | None, kernel: KernelBundle, qemu: Qemu) -> dict[str, Any]:
    """What the row says of how a machine began to run."""
    return {
        "started_from": "boot" if origin is None else origin.started_from,
        "resync_keys": [] if origin is None else list(origin.resync_keys),
        "kernel": kernel.release,
        "kernel_digest": kernel.digest,
        "qemu": qemu.version,
        "machine_type": qemu.machine_type if origin is None else origin.machine_type,
        "share_ports": SHARE_PORTS if origin is None else origin.share_ports,
        "share_servers": [],
        "layout": LAYOUT,
    }


def _not_read(error: VmgrError, origin: Origin, qemu: Qemu) -> VmgrError:
    """The error of a VMM that does not go on, which says so where another one saved it."""
    if origin.saved_under in {None, qemu.version}:
        return error
    return StateError(
        f"QEMU {qemu.version} cannot go on from what QEMU {origin.saved_under} saved: "
        f"{error.message}"
    )


async def _end(vmm: Vmm, reason: str) -> None:
    await vmm.kill(reason, at_once=True)
    await vmm.close()


def _one_sentence(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "its start was cancelled"
    return error.message if isinstance(error, VmgrError) else repr(error)
