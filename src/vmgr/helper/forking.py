"""Live forks: a running machine, processes and all, becomes several.

The machine is captured once: its memory into one sealed memfd that all children map, its disk
into a copy that is made while it goes on. Each child is then started as a machine from a template
is, and becomes one of its own before anything in it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.hostcommands import HostCommands
from vmgr.api.models import ForkedMachine, ForkMachine
from vmgr.artifact.sparse import copy_sparse
from vmgr.errors import ResourceError, UsageError, VmgrError
from vmgr.helper.capturing import capture
from vmgr.helper.privacy import nothing_private
from vmgr.helper.server import error_body
from vmgr.helper.starting import Origin
from vmgr.helper.volumes import check_fork
from vmgr.image import create_disk
from vmgr.machine.sizes import format_size
from vmgr.saved.memory import new_memfd, seal
from vmgr.vmm import Restore, available_memory

if TYPE_CHECKING:
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine, Services
    from vmgr.helper.store import MachineRow
    from vmgr.saved import SavedState

__all__ = ["Forking", "copied_row"]

MOST: Final = 100
log = logging.getLogger(__name__)


class Forking:
    """Forks machines."""

    def __init__(self, services: Services, helper: Helper) -> None:
        self._services = services
        self._helper = helper

    async def fork(self, name: str, request: ForkMachine) -> list[ForkedMachine]:
        """Make copies of a running machine that run; each child's outcome is its own.

        Raises:
            WrongStateError: it does not run.
            ConflictError, UsageError: the names cannot be had.
            ResourceError: the host has not the memory, or no space is left.
            MachineError: it could not be captured. In all these cases there are no children.
        """
        machines = self._helper.machines
        parent = await machines.awake(machines.get(name))
        names = self._names(parent, request)
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            async with parent.lock:
                parent.require("fork")
                check_fork(parent)
                _check_memory(parent, len(names))
                children: list[Machine] = []
                kernel = await self._helper.images.kernel_of(parent.row.kernel_digest or "")
                try:
                    for child in names:
                        row = copied_row(parent.row, child)
                        row = msgspec.structs.replace(row, volumes=parent.row.volumes)
                        children.append(await machines.add(row))
                    stack.enter_context(machines.promised(children, await machines.overcommit()))
                    memory, state, devices = await self._captured(parent, children[0])
                except BaseException:
                    for made in children:
                        await asyncio.shield(machines.forget(made))
                    raise
            stack.callback(os.close, memory)
            problems = await self._copy_disks(children)
            origin = Origin(
                "fork", Restore(memory, devices), state.resync_keys, kernel, state.machine_type,
                state.share_ports, state.layout, volumes=state.volumes,
            )  # fmt: skip
            outcomes = await asyncio.gather(
                *(
                    self._begin(child, origin, problem, began)
                    for child, problem in zip(children, problems, strict=True)
                )
            )
        self._services.events.publish(
            "machine.forked", name, children=[o.name for o in outcomes if o.error is None]
        )
        return outcomes

    async def _copy_disks(self, children: list[Machine]) -> list[OSError | None]:
        """Give each child the first one's disk, before that one runs; what went wrong with each."""
        first = children[0].paths.disk
        problems: list[OSError | None] = [None]
        try:
            # One after another: all of the helper's work on files shares a few threads.
            for child in children[1:]:
                problem = None
                try:
                    await self._services.executors.in_files(copy_sparse, first, child.paths.disk)
                except OSError as error:
                    problem = error
                problems.append(problem)
        except BaseException:
            for child in children:
                await asyncio.shield(self._helper.machines.forget(child))
            raise
        return problems

    def _names(self, parent: Machine, request: ForkMachine) -> list[str]:
        machines = self._helper.machines
        names = list(request.names)
        count = max(request.count or 1, len(names), 1)
        if request.count is not None and len(names) > request.count:
            raise UsageError(
                f"{len(names)} names are too many for {request.count} machines",
                next_step="give fewer names, or a larger --count",
            )
        if count > MOST:
            raise UsageError(
                f"{count} machines at once are too many", next_step=f"ask for at most {MOST}"
            )
        if len(set(names)) < len(names):
            raise UsageError("a name is given twice", next_step="give each machine its own")
        for name in names:
            machines.check_free(name)
        number = 1
        while len(names) < count:
            suffix = f"-{number}"
            made = parent.name[: 63 - len(suffix)] + suffix
            if made not in names and not machines.has(made):
                names.append(made)
            number += 1
        return names

    async def _captured(self, parent: Machine, first: Machine) -> tuple[int, SavedState, bytes]:
        """Memory (a sealed memfd), what is known, and devices; the disk is the first child's."""
        executor = self._services.executors.files
        image = await self._helper.images.resolve(parent.row.image_digest)
        channel = await parent.ready_channel()
        await create_disk(image, first.paths.disk, parent.row.disk_bytes, executor)
        with contextlib.ExitStack() as stack:
            memory = new_memfd()
            on_failure = stack.enter_context(contextlib.ExitStack())
            on_failure.callback(os.close, memory)
            reading = os.memfd_create("vmgr-devices", os.MFD_CLOEXEC)
            stack.callback(os.close, reading)
            # QEMU takes an fd only for exactly what it is open for.
            devices = os.open(f"/proc/self/fd/{reading}", os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, devices)
            disk = os.open(first.paths.disk, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, disk)
            async with nothing_private(parent, "a fork"):
                captured = await capture(
                    parent, channel, memory, devices, executor, disk=disk, sync=False, go_on=True,
                    volumes=[] if parent.vmm is None
                    else await self._helper.volumes.to_be_saved(parent, parent.vmm),
                )  # fmt: skip
            log.info(
                "machine %s: captured, held for %.0f ms", parent.name, captured.held_seconds * 1e3
            )
            seal(memory)
            content = os.pread(reading, os.fstat(reading).st_size, 0)
            on_failure.pop_all()
        return memory, captured.state, content

    async def _begin(
        self, child: Machine, origin: Origin, problem: OSError | None, began: float
    ) -> ForkedMachine:
        """Start a child; one that does not start is gone."""
        machines = self._helper.machines
        try:
            _check_copied(child, problem)
            async with child.lock:
                await child.move("created")
                await machines.engine.starting.begin(child, origin, lambda _text, _part: None)
        except VmgrError as error:
            log.warning("fork %s does not start: %s", child.name, error)
            await asyncio.shield(machines.forget(child))
            return ForkedMachine(name=child.name, error=error_body(error))
        except BaseException:
            await asyncio.shield(machines.discard(child))
            raise
        return ForkedMachine(name=child.name, seconds=time.monotonic() - began)


def _check_copied(child: Machine, problem: OSError | None) -> None:
    """Let what went wrong with a child's disk be the child's failure."""
    if problem is not None:
        raise ResourceError(
            f"the disk of machine {child.name} cannot be copied: {problem.strerror}",
            next_step="free some space",
        )


def copied_row(row: MachineRow, name: str) -> MachineRow:
    """The row of a new machine that begins as a copy of another; its number is for the caller."""
    return msgspec.structs.replace(
        row,
        id=secrets.token_hex(6),
        name=name,
        status="creating",
        status_reason=None,
        ephemeral=False,
        number=None,
        interface=None,
        fallback=False,
        network_problem=None,
        # A port of this computer leads to one machine.
        ports=[],
        # What one may run on this computer was said of it, not of its copies.
        host_commands=HostCommands(),
        # The caller knows which volumes it may have.
        volumes=[],
        share_servers=[],
        created_at=time.time(),
        started_at=None,
        boot_seconds=None,
        boot_id=None,
        booted_init=None,
        vmm_pid=None,
        vmm_start_time=None,
        pristine=False,
        template=None,
        cold=False,
        started_from=None,
        clone=True,
        resync_keys=[],
    )


def _check_memory(parent: Machine, count: int) -> None:
    """All of them before any: half a family helps nobody."""
    wanted, available = count * parent.row.memory_bytes, available_memory()
    if wanted > available:
        raise ResourceError(
            f"{count} more machines of {format_size(parent.row.memory_bytes)} may take "
            f"{format_size(wanted)}, and this host has {format_size(available)} available",
            next_step="ask for fewer, or stop other machines",
        )
