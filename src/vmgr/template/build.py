"""Making a template: boot a machine that is nobody's, wait until it has settled, save it.

It has no name, no network and no data of a person's. Whatever two machines must not share is either
not there yet when it is saved or replaced when one starts from it; docs/templates.md has the list.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr._version import __version__
from vmgr.agent import AgentChannel, MemoryKeyStore
from vmgr.artifact.faults import failed
from vmgr.artifact.staging import staging
from vmgr.artifact.threads import in_thread
from vmgr.errors import ExecError, MachineError
from vmgr.image import create_disk
from vmgr.paths import MachinePaths
from vmgr.saved import SavedState, Saver, memory_checksum
from vmgr.template.files import RECORD, TemplateRecord
from vmgr.vmm import LAYOUT, BootPolicy, Vmm, boot

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from vmgr.agent import AgentEvent, AgentHello
    from vmgr.image import Image
    from vmgr.kernel import KernelBundle
    from vmgr.sandbox import Sandbox
    from vmgr.template.files import TemplateFiles
    from vmgr.vmm import Accelerator, Qemu, VmmNetwork, VmmSpec

    Progress = Callable[[str, float | None], None]

__all__ = ["BuildPlan", "build_template"]

_SETTLE_DEADLINE: Final = 180.0  # seconds; a systemd under emulation on a busy host takes long
_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# Started once, so that what every command needs is in memory. With systemd, when all its jobs are
# done: a machine that still boots would make each clone do the rest of it.
_SETTLE: Final = b"""
if [ -d /run/systemd/system ]; then
  i=0
  until [ -S /run/systemd/private ] || [ $i -ge 600 ]; do sleep 0.1; i=$((i + 1)); done
  systemctl is-system-running --wait >/dev/null 2>&1
fi
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
id >/dev/null 2>&1
exit 0
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildPlan:
    """What a template is built of."""

    key: str
    spec: VmmSpec
    """Its disk and names do not count."""
    disk_bytes: int
    image: Image
    kernel: KernelBundle
    qemu: Qemu
    accelerator: Accelerator
    sandbox: Sandbox
    policy: BootPolicy
    place: Callable[[str], AbstractAsyncContextManager[VmmNetwork]]
    """What the machine of that id is plugged into while its VMM is started."""


async def build_template(
    plan: BuildPlan, files: TemplateFiles, runtime: Path, executor: Executor, progress: Progress
) -> None:
    """Build and show one; interrupted, it leaves nothing that is ever used.

    Args:
        runtime: a directory for the VMM's sockets, made and removed here.
        executor: for file work.

    Raises:
        BootError: it did not boot.
        MachineError: it could not be saved.
        ResourceError: no space left.
    """
    async with staging(files.root) as stage:
        paths = MachinePaths(stage, runtime)
        try:
            progress("Booting the template's machine", None)
            await create_disk(plan.image, paths.disk, plan.disk_bytes, executor)
            record = await _boot_and_save(plan, paths, executor, progress)

            def finish() -> None:
                for path in (paths.console_log, paths.vmm_log):
                    path.unlink(missing_ok=True)
                whole = msgspec.structs.replace(
                    record,
                    disk_checksum=file_checksum(paths.disk),
                    devices_checksum=file_checksum(stage / "devices"),
                )
                (stage / RECORD).write_bytes(msgspec.json.encode(whole))

            await in_thread(executor, finish)
            await files.publish(stage, plan.key)
        except OSError as error:
            raise failed(error, "make a template", files.root) from error
        finally:
            await asyncio.shield(in_thread(executor, _clear, runtime))


async def _boot_and_save(
    plan: BuildPlan, paths: MachinePaths, executor: Executor, progress: Progress
) -> TemplateRecord:
    spec = replace(plan.spec, machine_id=paths.runtime.name, name="template", disk=paths.disk)
    keys = MemoryKeyStore()

    async def start(*, verbose: bool) -> Vmm:
        keys.keys = MemoryKeyStore().keys
        async with plan.place(spec.machine_id) as network:
            return await Vmm.start(
                replace(spec, network=network), paths, plan.qemu, plan.accelerator, executor,
                sandbox=plan.sandbox, verbose=verbose, background=True,
            )  # fmt: skip

    async def hello(vmm: Vmm) -> tuple[AgentChannel, AgentHello]:
        del vmm
        channel = await AgentChannel.connect(
            paths.agent_socket, keys, machine="template", host_version=__version__,
            on_event=_ignore, logger=log,
        )  # fmt: skip
        try:
            return channel, await channel.hello()
        except BaseException:
            channel.close()
            raise

    booted = await boot("template", start, hello, plan.policy)
    channel, greeting = booted.hello
    try:
        if "still" not in greeting.features:
            raise MachineError("the agent of the template's machine cannot hold it still")
        progress("Waiting until it has settled", None)
        await channel.clock(time.time_ns())
        await _settle(channel)
        progress("Saving it", None)
        await channel.freeze()
        await channel.aclose()
        saved = await _save(plan, booted.vmm, paths, greeting, executor)
    finally:
        channel.close()
        # Not at once: what QEMU still holds of the disk is to be in the file.
        await asyncio.shield(_end(booted.vmm))
    return TemplateRecord(
        id=secrets.token_hex(8),
        image_digest=plan.image.digest,
        disk_bytes=plan.disk_bytes,
        disk_checksum=0,  # when the VMM has ended
        devices_checksum=0,
        saved=msgspec.structs.replace(saved, resync_keys=list(await keys.candidates())),
    )


async def _settle(channel: AgentChannel) -> None:
    try:
        await channel.run([b"/bin/sh", b"-c", _SETTLE], deadline=_SETTLE_DEADLINE)
    except ExecError:
        log.info("the template's machine has no shell: it is saved as it is")
    except TimeoutError:
        raise MachineError(
            f"the template's machine has not settled within {_SETTLE_DEADLINE:g} s"
        ) from None


async def _save(
    plan: BuildPlan, vmm: Vmm, paths: MachinePaths, greeting: AgentHello, executor: Executor
) -> SavedState:
    """Save a machine that is held still; its resync keys are for the caller to add."""
    memory, devices = await in_thread(executor, _new_files, paths.state)
    try:
        async with Saver(vmm, plan.spec.memory_bytes, memory, devices, executor) as saver:
            await vmm.pause()
            used = await saver.save()
    finally:
        os.close(memory)
        os.close(devices)
    checksum = await memory_checksum(paths.state / "memory", plan.spec.memory_bytes)
    return SavedState(
        saved_at=time.time(),
        qemu=plan.qemu.version,
        machine_type=plan.qemu.machine_type,
        accelerator=plan.accelerator.name,
        kernel_digest=plan.kernel.digest,
        kernel=plan.kernel.release,
        cpus=plan.spec.cpus,
        memory_bytes=plan.spec.memory_bytes,
        boot_id=greeting.boot_id,
        init=greeting.init,
        resync_keys=[],
        memory_used=used,
        memory_checksum=checksum,
        share_ports=plan.spec.share_ports,
        layout=LAYOUT,
    )


def _new_files(directory: Path) -> tuple[int, int]:
    memory = os.open(directory / "memory", os.O_RDWR | _NEW, 0o600)
    try:
        return memory, os.open(directory / "devices", os.O_WRONLY | _NEW, 0o600)
    except BaseException:
        os.close(memory)
        raise


def file_checksum(path: Path) -> int:
    """A checksum of a small file's content; blocks."""
    return zlib.crc32(path.read_bytes())


async def _end(vmm: Vmm) -> None:
    await vmm.kill("its machine is saved")
    await vmm.close()


def _ignore(event: AgentEvent) -> None:
    del event


def _clear(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
