"""After a crash or a reboot: find out what is true, and make rows, files and processes agree.

| row says | found | done |
|---|---|---|
| creating | anything | the machine never was: removed |
| removing | anything | removal is finished |
| stopped | a VMM of it | ended: nobody asked for it (a helper died between spawn and row) |
| starting, running, stopping | its VMM | adopted: connections are made anew, jobs go on |
| suspending | its VMM | adopted: it goes on, what was saved of it is of no use then |
| starting, suspending | its VMM, which ends before it is adopted | as without it |
| starting, running, stopping | no VMM | stopped, with the reason |
| starting, suspending | no VMM, a saved memory that fits its disk | suspended |
| any, and it waits in a pool | anything | removed: the pool was the dead helper's |
| (no row) | files of a machine | removed |

Ephemeral machines without a VMM are removed. VMMs are recognized by the process that the row names
(pid and start time, so a reused pid is no match) and, where the row names none, by the machine's
disk on their command line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import VmgrError
from vmgr.spawner.process import parent_of, start_time_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from vmgr.helper.engine import Engine
    from vmgr.helper.machine import Machine, Services
    from vmgr.helper.tasks import Tasks

__all__ = ["host_boot_id", "reconcile"]

# What starts a VMM and then turns into it, or waits for it; each has all of its command line.
_AROUND: Final = frozenset({b"bwrap", b"ionice", b"prlimit", b"setpriv"})
_LIVE: Final = {"starting", "running", "stopping", "suspending"}

log = logging.getLogger(__name__)


def host_boot_id() -> str:
    """What tells this boot of the host from others; see random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


async def reconcile(
    services: Services,
    machines: Iterable[Machine],
    engine: Engine,
    forget: Callable[[Machine], Awaitable[None]],
    tasks: Tasks,
) -> None:
    """Do what the module's table says; adopting goes on in the background, under the locks."""
    machines = list(machines)
    files = services.executors.in_files
    vmms = await files(_find_vmms, services.paths.machines)
    boot_id = await files(host_boot_id)
    await _end_builders(services)
    for machine in machines:
        pid = vmms.pop(machine.row.id, None)
        if machine.row.status not in _LIVE or machine.row.pooled:
            await _settle_dead(machine, pid, forget)
        elif pid is None:
            await _settle_ended(
                machine, engine, forget, same_boot=machine.row.host_boot_id == boot_id
            )
        else:
            if machine.row.vmm_pid != pid:
                await machine.save(vmm_pid=pid, vmm_start_time=start_time_of(pid))
            await machine.lock.acquire()
            machine.adopted.clear()
            tasks.start(_adopt(machine, engine), name=f"adopt {machine.name}")
    for machine in machines:
        if machine.row.pooled:
            continue
        # One that begins to go on may end before it has read what was saved; what adopts it knows.
        if machine.status not in {"suspended", "suspending", "restoring", "starting"}:
            await engine.suspending.drop(machine)
    for machine_id, pid in vmms.items():
        log.warning("ending a VMM (pid %d) of no known machine (%s)", pid, machine_id)
        await _end(pid)
    known = {m.row.id for m in machines}
    for line in await files(_remove_strays, services.paths.machines, known):
        log.info("removed residue: %s", line)
    await files(_remove_strays, services.paths.runtime / "machines", known)


async def _settle_dead(
    machine: Machine, pid: int | None, forget: Callable[[Machine], Awaitable[None]]
) -> None:
    """A machine that should have no VMM."""
    await _end(pid)
    if machine.row.status in {"creating", "removing"}:
        log.info("machine %s: was %s, removed", machine.name, machine.row.status)
        await forget(machine)
    elif machine.row.ephemeral:  # those that waited in a pool are
        await forget(machine)


async def _settle_ended(
    machine: Machine,
    engine: Engine,
    forget: Callable[[Machine], Awaitable[None]],
    *,
    same_boot: bool,
) -> None:
    """A machine whose VMM has ended while nobody saw it."""
    saving = machine.row.status in {"starting", "suspending"}
    if saving and await engine.suspending.still_saved(machine):
        await machine.move("suspended", vmm_pid=None, vmm_start_time=None)
        return
    reason = "its VMM ended unobserved" if same_boot else "the host was restarted"
    await machine.move("vmm-exited", reason=reason, vmm_pid=None, vmm_start_time=None)
    if machine.row.ephemeral:
        await forget(machine)


async def _end_builders(services: Services) -> None:
    """End the VMMs that templates were being built with: nobody saves them any more."""
    found = await services.executors.in_files(_find_vmms, services.paths.templates)
    for pid in found.values():
        log.info("ending a VMM (pid %d) that a template was being built with", pid)
        await _end(pid)


async def _adopt(machine: Machine, engine: Engine) -> None:
    try:
        await engine.adopt(machine)
    except VmgrError as error:
        log.warning("machine %s: runs, but is not reached: %s", machine.name, error)
    finally:
        machine.adopted.set()
        machine.lock.release()


async def _end(pid: int | None) -> None:
    """Kill a VMM that should not be, and wait until it is gone."""
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        async with asyncio.timeout(10):
            await gone.wait()
    except (ProcessLookupError, TimeoutError) as error:
        log.warning("VMM %d: %r", pid, error)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _find_vmms(directory: Path) -> dict[str, int]:
    """VMMs of this user with a disk under `directory`: machine id to pid.

    Read from their command lines, which we wrote (QEMU doubles commas in option values).
    """
    candidates: dict[str, set[int]] = {}
    here = os.fsencode(directory).replace(b",", b",,") + b"/"
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            arguments = Path(entry.path, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        name = arguments[0].rpartition(b"/")[2]
        if b"qemu" not in name and name not in _AROUND:
            continue
        for argument in arguments:
            _, mark, rest = argument.partition(here)
            if mark and (machine_id := rest.split(b"/")[0]):
                candidates.setdefault(machine_id.decode(errors="replace"), set()).add(
                    int(entry.name)
                )
                break
    return {machine: _innermost(pids) for machine, pids in candidates.items()}


def _innermost(pids: set[int]) -> int:
    """The VMM, or what is about to become it, of the processes that have its command line."""
    parents = {parent_of(pid) for pid in pids}
    return max(pids - parents or pids)


def _remove_strays(directory: Path, known: set[str]) -> list[str]:
    """Delete directories of machines that nobody knows."""
    strays = [entry for entry in directory.iterdir() if entry.name not in known]
    for stray in strays:
        shutil.rmtree(stray, ignore_errors=True)
    return [str(stray) for stray in strays]
