"""Starting a machine: from a template where it can, else by a boot.

A machine that never ran goes on where a template of its kind stands, if there is one; all others
boot, and so does one that does not come up from its template. Either way the person's first command
finds a machine that knows who it is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vmgr.errors import VmgrError
from vmgr.helper.reconcile import host_boot_id
from vmgr.image import base_of, create_disk
from vmgr.vmm import BootPolicy, Vmm, VmmSpec, boot

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmgr.agent import AgentChannel, AgentHello
    from vmgr.helper.engine import Engine
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine, Services
    from vmgr.helper.plugging import Plugging
    from vmgr.helper.templates import Ready
    from vmgr.kernel import KernelBundle
    from vmgr.sandbox import Sandbox
    from vmgr.vmm import Accelerator, Qemu

    Progress = Callable[[str, float | None], None]

__all__ = ["Starting"]

ENTROPY_BYTES: Final = 256
# A restored machine answers within a tenth of a second; one that does not is booted instead.
_RESTORE_POLICY: Final = BootPolicy(silence=20.0, deadline=20.0, attempts=1)

# In place of a template's id, while a machine that never ran starts for the first time.
_WRITTEN_TO: Final = "written to"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Host:
    """What a machine is started with."""

    qemu: Qemu
    accelerator: Accelerator
    sandbox: Sandbox


class Starting:
    """Starts machines for the engine, which looks after them from then on."""

    def __init__(
        self, services: Services, helper: Helper, engine: Engine, plugging: Plugging
    ) -> None:
        self._services = services
        self._helper = helper
        self._engine = engine
        self._plugging = plugging
        self._host_boot_id: str | None = None

    async def start(self, machine: Machine, progress: Progress, *, cold: bool = False) -> None:
        """Start a stopped machine and wait until it is ready. The caller holds its lock.

        One that never ran goes on where a template of its kind stands, if there is one; all others
        boot, and so does one that does not come up from its template.

        Args:
            cold: boot it in any case.

        Raises:
            BootError: it never became ready.
            VmgrError: it could not be started; the machine is stopped, with the reason.
        """
        ready = None
        first = machine.row.pristine
        if first:
            cold = cold or machine.row.cold
            ready = None if cold else await self._helper.templates.find(machine.row)
        try:
            if first:
                await self._fit_disk(machine, ready)
            await self._start(machine, ready, progress)
        finally:
            if ready is not None:
                ready.close()
        # Only first starts use templates, so a machine that booted again says nothing of the next.
        if first and machine.row.started_from == "boot":
            await self._helper.templates.wanted(machine.row)

    async def _fit_disk(self, machine: Machine, ready: Ready | None) -> None:
        """Make the disk of a machine that never ran what it will start from.

        Whatever a start that failed has left on it is gone then: a restored memory would not match
        it, and nothing of a person's is there.
        """
        wanted = None if ready is None else ready.template.record.id
        if machine.row.template == wanted:
            return
        if ready is not None:
            await self._helper.templates.copy_disk(ready, machine.paths.disk)
        else:
            image = await self._helper.images.resolve(machine.row.image_digest)
            await create_disk(
                image, machine.paths.disk, machine.row.disk_bytes, self._services.executors.files
            )
        await machine.save(template=wanted)

    async def _start(self, machine: Machine, ready: Ready | None, progress: Progress) -> None:
        kernel = await self._helper.images.kernel(progress)
        qemu = await self._engine.qemu()
        accelerator = await self._engine.accelerator(kernel.kernel)
        config = await self._helper.settings()
        sandbox = await self._engine.sandbox(config)
        progress(f"starting {machine.name}", None)
        began = time.time()
        machine.kill_reason = None
        await machine.move(
            "start",
            kernel=kernel.release,
            kernel_digest=kernel.digest,
            started_at=began,
            host_boot_id=await self._boot_id(),
            accelerator=accelerator.name,
            qemu=qemu.version,
            machine_type=qemu.machine_type,
            sandbox=sandbox.level,
            started_from="boot" if ready is None else "template",
            resync_keys=[] if ready is None else ready.template.record.saved.resync_keys,
            boot_id=None,
            # From here on the disk is like no template, and like its image no more.
            template=_WRITTEN_TO if machine.row.pristine else None,
        )
        spec = await self._spec(machine, kernel)
        policy = BootPolicy(
            silence=float(config.get("boot.silence_timeout")),
            deadline=float(config.get("boot.timeout")),
        )
        host = _Host(qemu, accelerator, sandbox)
        try:
            if ready is None or not await self._restored(machine, spec, ready, host):
                await self._bring_up(machine, spec, host, policy)
            await machine.move(
                "ready", boot_seconds=time.time() - began, pristine=False, template=None,
                boot_id=machine.greeting.boot_id, booted_init=machine.greeting.init,
            )  # fmt: skip
        except BaseException as error:
            vmm, machine.vmm = machine.vmm, None
            if machine.channel is not None:
                machine.channel.close()
                machine.channel = None
            if vmm is not None:
                await asyncio.shield(_end(vmm, "its start failed"))
            reason = machine.kill_reason or _one_sentence(error)
            await asyncio.shield(
                machine.move("vmm-exited", reason=reason, vmm_pid=None, vmm_start_time=None)
            )
            raise
        assert machine.vmm is not None  # noqa: S101 (it has been brought up)
        self._engine.started(machine, machine.vmm)

    async def _restored(self, machine: Machine, spec: VmmSpec, ready: Ready, host: _Host) -> bool:
        """Let it go on where its template stands; False when that does not work.

        Then its disk is a new one: nothing of a person's has run on it.
        """
        restored = replace(spec, restore=ready.restore)
        try:
            await self._bring_up(machine, restored, host, _RESTORE_POLICY)
        except VmgrError as error:
            if machine.kill_reason is not None:
                raise
            log.warning("machine %s boots, as its template failed: %s", machine.name, error)
            await self._helper.templates.distrust(ready, error.message)
        else:
            return True
        await machine.save(started_from="boot", resync_keys=[], vmm_pid=None, vmm_start_time=None)
        await self._fit_disk(machine, None)
        return False

    async def _bring_up(
        self, machine: Machine, spec: VmmSpec, host: _Host, policy: BootPolicy
    ) -> None:
        """Start the VMM and wait until its agent answers and knows which machine it is in.

        Where that fails the VMM has ended.
        """
        keys = machine.row.resync_keys

        async def start(verbose: bool) -> Vmm:  # noqa: FBT001 (the interface of `boot`)
            async with self._plugging.place(machine) as network:
                vmm = await Vmm.start(
                    replace(spec, network=network), machine.paths, host.qemu, host.accelerator,
                    self._services.executors.files, sandbox=host.sandbox, verbose=verbose,
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
        entropy = secrets.token_bytes(ENTROPY_BYTES)
        if machine.row.started_from != "template":
            # The emulated clock chip counts whole seconds.
            await channel.clock(time.time_ns())
            await channel.configure(hostname=machine.name, entropy=entropy)
            await self._plugging.tell(machine, channel)
            return
        has_init = greeting.init != "agent"
        await self._plugging.tell(machine, channel)
        await channel.configure(
            hostname=machine.name,
            entropy=entropy,
            machine_id=uuid.uuid4().hex if has_init else None,
            realtime_ns=time.time_ns(),
            renew=has_init,
            thaw=True,
        )

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
            disk=machine.paths.disk,
            backing=(base_of(image, row.disk_bytes),),
            init=row.init,
        )

    async def _boot_id(self) -> str:
        if self._host_boot_id is None:
            self._host_boot_id = await self._services.executors.in_files(host_boot_id)
        return self._host_boot_id


async def _end(vmm: Vmm, reason: str) -> None:
    await vmm.kill(reason, at_once=True)
    await vmm.close()


def _one_sentence(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "its start was cancelled"
    return error.message if isinstance(error, VmgrError) else repr(error)
