"""Templates as the helper uses them: which machine starts from which, building them, bounding them.

A person never waits for a template and never sees a start fail because of one: it is made in the
background after a machine of its kind has booted; a damaged one is removed and made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vmgr.api.models import TemplateInfo, TemplatesRemoved
from vmgr.artifact.faults import failed
from vmgr.artifact.threads import in_thread
from vmgr.errors import NotFoundError, StateError, UnfitStateError, VmgrError
from vmgr.helper.sharedwork import SharedWork
from vmgr.image import base_of
from vmgr.network import Reach
from vmgr.network.addresses import TEMPLATE, identity_of
from vmgr.saved import load_memory
from vmgr.spawner import ProcessFailedError
from vmgr.template import BuildPlan, Template, TemplateFiles, build_template, template_key
from vmgr.template.build import file_checksum
from vmgr.template.key import host_cpu
from vmgr.vmm import BootPolicy, Restore, VmmNetwork, VmmSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Services
    from vmgr.helper.store import MachineRow
    from vmgr.helper.tasks import Tasks

    Progress = Callable[[str, float | None], None]

__all__ = ["Ready", "Templates"]

_KEPT_OPEN: Final = 2
"""Memories that are held ready, beside those that running machines hold."""
_UNUSED_SECONDS: Final = 600.0
"""After so long without a start, loaded memories are let go of."""
_SOME_FD: Final = 9  # in a key the number is nobody's
_FICLONE: Final = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A template whose memory and devices are loaded and sound; `close` it."""

    template: Template
    memory: int
    devices: bytes

    @property
    def restore(self) -> Restore:
        """What a VMM is given of it."""
        return Restore(self.memory, self.devices)

    def close(self) -> None:
        """Let go of the memory; a VMM that maps it keeps it."""
        os.close(self.memory)

    def another(self) -> Ready:
        """The same with an fd of its own, for a taker who closes it."""
        return replace(self, memory=os.dup(self.memory))


class Templates:
    """The helper's templates.

    Args:
        tasks: what goes on for as long as the helper does.
    """

    def __init__(self, services: Services, tasks: Tasks, helper: Helper) -> None:
        self._services = services
        self._tasks = tasks
        self._helper = helper
        self._files = TemplateFiles(services.paths.templates, services.executors.files)
        self._loaded: dict[str, Ready] = {}
        self._loading = asyncio.Lock()
        self._suspect: set[str] = set()
        self._failed: set[str] = set()
        self._building = asyncio.Lock()
        self._shared = SharedWork()
        self._expiry: asyncio.TimerHandle | None = None
        self._cpu: str | None = None

    # -- using ------------------------------------------------------------------------------

    async def find(self, row: MachineRow) -> Ready | None:
        """The template that a new machine like this one can start from; None: none."""
        if not await self._limit():
            return None
        try:
            plan = await self._plan(row)
            return await self._load(plan.key)
        except VmgrError as error:
            log.warning("no template for machine %s: %s", row.name, error)
            return None

    async def _load(self, key: str) -> Ready | None:
        async with self._loading:
            if (ready := self._loaded.pop(key, None)) is not None:
                if await in_thread(self._services.executors.files, _is_same, ready.template):
                    self._let_go_later()
                    self._loaded[key] = ready  # the latest used comes last
                    return ready.another()
                ready.close()  # removed or replaced behind our back
            template = await self._files.get(key)
            if template is None:
                return None
            saved = template.record.saved
            try:
                memory = await load_memory(
                    template.memory, saved.memory_bytes, saved.memory_checksum
                )
                devices = await in_thread(self._services.executors.files, _read_sound, template)
            except StateError as error:
                await self._discard(key, error.message)
                return None
            ready = self._loaded[key] = Ready(template, memory, devices)
            self._let_go_later()
            while len(self._loaded) > _KEPT_OPEN:
                self._loaded.pop(next(iter(self._loaded))).close()
            return ready.another()

    def _let_go_later(self) -> None:
        """Loaded memories take the host's memory: not longer than they are of use."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(_UNUSED_SECONDS, self.close)

    async def copy_disk(self, ready: Ready, target: Path) -> None:
        """Make a machine's disk what the template's was when it was saved; appears whole.

        Raises:
            UnfitStateError: the template was removed or built anew since it was loaded.
            ResourceError, StateError: the disk cannot be made.
        """
        try:
            await in_thread(self._services.executors.files, _copy_disk, ready.template, target)
        except OSError as error:
            raise failed(error, "make the machine's disk", target.parent) from error
        await self._files.touch(ready.template)

    async def distrust(self, ready: Ready, reason: str) -> None:
        """A machine did not start from it: it goes, and the next boot makes another, but only once.

        A host on which machines cannot be restored at all would do nothing but build.
        """
        key = ready.template.key
        if key in self._suspect:
            self._failed.add(key)
        self._suspect.add(key)
        async with self._loading:
            await self._discard(key, reason)

    async def _discard(self, key: str, reason: str) -> None:
        log.warning("template %s is removed: %s", key, reason)
        self._services.events.publish("template.removed", key=key, reason=reason)
        self._forget(key)
        await self._files.remove(key)

    def _forget(self, key: str) -> None:
        if (ready := self._loaded.pop(key, None)) is not None:
            ready.close()

    # -- making -----------------------------------------------------------------------------

    async def wanted(self, row: MachineRow) -> None:
        """A machine like this one has booted: have a template for the next, in the background."""
        try:
            if not await self._limit():
                return
            plan = await self._plan(row)
        except VmgrError as error:  # the machine runs all the same
            log.warning("no template for machines like %s: %s", row.name, error)
            return
        if plan.key in self._failed or await self._files.get(plan.key) is not None:
            return
        self._tasks.start(self._build_quietly(plan), name=f"template {plan.key}")

    async def build(self, row: MachineRow, progress: Progress) -> TemplateInfo:
        """Build the template for machines like `row`, also where there is one.

        Raises:
            VmgrError: it could not be built.
        """
        plan = await self._plan(row)
        await self._shared.do(plan.key, lambda tell: self._build(plan, tell), progress)
        template = await self._files.get(plan.key)
        if template is None:
            raise StateError("the template was removed while it was built", next_step="try again")
        return await self._info(template)

    async def _build_quietly(self, plan: BuildPlan) -> None:
        try:
            if await self._files.get(plan.key) is None:  # another build may have come first
                await self._shared.do(
                    plan.key, lambda tell: self._build(plan, tell), lambda _text, _part: None
                )
        except VmgrError as error:
            self._failed.add(plan.key)
            log.warning("no template %s: %s", plan.key, error)
            self._services.events.publish("template.failed", key=plan.key, reason=error.message)

    async def _build(self, plan: BuildPlan, progress: Progress) -> None:
        async with self._building:
            runtime = self._services.paths.runtime / "machines" / secrets.token_hex(6)
            try:
                await build_template(
                    plan, self._files, runtime, self._services.executors.files, progress
                )
            except (OSError, ProcessFailedError) as error:
                raise failed(error, "make a template", self._files.root) from error
            finally:
                await self._helper.network.unplug(runtime.name)
            async with self._loading:
                self._forget(plan.key)
            self._failed.discard(plan.key)
            self._services.events.publish("template.built", key=plan.key)
            log.info("template %s is built", plan.key)
            config = await self._helper.settings()
            for key in await self._files.bound(
                int(config.get("template.max")), int(config.get("template.space"))
            ):
                async with self._loading:
                    self._forget(key)
                log.info("template %s was not used for longest and is removed", key)

    async def _plan(self, row: MachineRow) -> BuildPlan:
        engine = self._helper.machines.engine
        config = await self._helper.settings()
        image = await self._helper.images.resolve(row.image_digest)
        kernel = await self._helper.images.kernel(lambda _text, _part: None)
        qemu = await engine.qemu()
        accelerator = await engine.accelerator(kernel.kernel)
        if self._cpu is None:
            self._cpu = await in_thread(self._services.executors.files, host_cpu)
        spec = VmmSpec(
            machine_id="0" * 12,
            name="template",
            cpus=row.cpus,
            memory_bytes=row.memory_bytes,
            kernel=kernel.kernel,
            initramfs=kernel.initramfs,
            modules=kernel.modules,
            disk=self._services.paths.templates,
            backing=(base_of(image, row.disk_bytes),),
            init=row.init,
            counter_khz=await engine.counter_khz(),
            network=await self._network(row.access),
        )
        key = template_key(
            spec, qemu, accelerator, image=image.digest, kernel=kernel.digest, cpu=self._cpu
        )
        policy = BootPolicy(
            silence=float(config.get("boot.silence_timeout")),
            deadline=float(config.get("boot.timeout")),
        )
        sandbox = await engine.sandbox(config)
        return BuildPlan(
            key, spec, row.disk_bytes, image, kernel, qemu, accelerator, sandbox, policy,
            place=lambda machine: self._place(machine, spec.network),
        )  # fmt: skip

    async def _network(self, access: str) -> VmmNetwork:
        """The kind of network that a machine's device is plugged into: its features depend on it.

        What a device was seen to offer when it was saved it must offer when it is restored.
        """
        mac = identity_of("0" * 12, TEMPLATE).mac.hex(":")
        if await self._helper.network.usable():
            return VmmNetwork(mac=mac, tap_fd=_SOME_FD)
        fallback = str((await self._helper.settings()).get("network.fallback"))
        user_mode = access != "none" and fallback != "off"
        return VmmNetwork(mac=mac, user_mode="isolated" if user_mode else None)

    @contextlib.asynccontextmanager
    async def _place(self, machine: str, kind: VmmNetwork | None) -> AsyncIterator[VmmNetwork]:
        """The same kind for the machine that a template is made of, which may reach nothing."""
        assert kind is not None  # noqa: S101 (every plan has one)
        if kind.tap_fd is None:
            yield kind
            return
        network = self._helper.network
        plugged = await network.plug(machine, "template", TEMPLATE, Reach("none"))
        if plugged.fd is None:
            raise StateError(f"the template's machine has no network: {plugged.problem}")
        try:
            yield replace(kind, tap_fd=plugged.fd)
        finally:
            os.close(plugged.fd)

    async def _limit(self) -> int:
        return int((await self._helper.settings()).get("template.max"))

    # -- listing, removing ----------------------------------------------------------------------

    async def infos(self) -> list[TemplateInfo]:
        """All templates, the one used last first."""
        return [await self._info(template) for template in await self._files.all()]

    async def remove(self, key: str) -> TemplatesRemoved:
        """Remove the template whose key begins with `key`, or with an empty one all.

        Raises:
            NotFoundError: there is none.
        """
        found = [t for t in await self._files.all() if t.key.startswith(key)]
        if not found and key:
            raise NotFoundError(
                f"there is no template {key}", next_step="see those there are: vmgr template ls"
            )
        async with self._loading:
            for template in found:
                self._forget(template.key)
                await self._files.remove(template.key)
        return TemplatesRemoved(
            removed=[t.key for t in found], freed_bytes=sum(t.size_bytes for t in found)
        )

    async def remove_orphans(self) -> None:
        """Remove the templates of images that have gone."""
        images = {image.digest for image in await self._helper.images.infos()}
        for template in await self._files.all():
            if template.record.image_digest not in images:
                async with self._loading:
                    await self._discard(template.key, "its image has gone")

    async def reconcile(self) -> None:
        """Remove what interrupted builds left."""
        for line in await self._files.reconcile():
            log.info("removed residue: template %s", line)

    def close(self) -> None:
        """Let go of loaded memories; machines keep theirs."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for key in list(self._loaded):
            self._forget(key)

    async def _info(self, template: Template) -> TemplateInfo:
        record = template.record
        names: list[str] = []
        with contextlib.suppress(VmgrError):
            names = (await self._helper.images.info(record.image_digest)).names
        return TemplateInfo(
            key=template.key,
            image=names[0] if names else record.image_digest,
            image_digest=record.image_digest,
            cpus=record.saved.cpus,
            memory_bytes=record.saved.memory_bytes,
            disk_bytes=record.disk_bytes,
            qemu=record.saved.qemu,
            accelerator=record.saved.accelerator,
            created_at=record.saved.saved_at,
            used_at=template.used_at,
            size_bytes=template.size_bytes,
        )


def _is_same(template: Template) -> bool:
    """Whether the loaded template is still the one on disk."""
    try:
        # A template that is built anew is another directory.
        return template.directory.stat().st_ino == template.inode
    except OSError:
        return False


def _read_sound(template: Template) -> bytes:
    """The device state, after a look at the disk.

    Raises:
        StateError: one of them is damaged.
    """
    try:
        if file_checksum(template.disk) != template.record.disk_checksum:
            raise StateError(f"the template {template.key} is damaged: its disk has changed")
        if file_checksum(template.devices) != template.record.devices_checksum:
            raise StateError(f"the template {template.key} is damaged: its devices have changed")
        return template.devices.read_bytes()
    except OSError as error:
        raise StateError(f"the template {template.key} cannot be read") from error


def _copy_disk(template: Template, target: Path) -> None:
    """Copy a disk, sharing its blocks where the file system can; it appears by a rename."""
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    gone = UnfitStateError(f"the template {template.key} is another one by now")
    try:
        source = template.disk.open("rb")
    except FileNotFoundError:
        raise gone from None
    try:
        with source as reading, made.open("xb") as writing:
            made.chmod(0o600)
            try:
                fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
            except OSError:
                shutil.copyfileobj(reading, writing, 1 << 20)
        # The memory is that of the one that was loaded: with another's disk it would ruin it.
        if not _is_same(template):
            raise gone
        made.rename(target)
    finally:
        made.unlink(missing_ok=True)
