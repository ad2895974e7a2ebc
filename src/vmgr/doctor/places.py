"""Room on this host: disk, memory, vmgr's own directories and settings."""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
from typing import TYPE_CHECKING, Final

from vmgr.doctor.host import error, good, warning
from vmgr.machine.sizes import format_size
from vmgr.vmm import available_memory

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.api.models import Check
    from vmgr.doctor.host import Host

__all__ = ["directories", "disk_space", "memory", "settings"]

_ENOUGH: Final = 5 << 30  # two images, their builds and some machines' disks
_TOO_LITTLE: Final = 1 << 30  # the default image is built in 600 MB


async def disk_space(host: Host) -> Check:
    """Free space where images and disks are kept."""
    return await asyncio.get_running_loop().run_in_executor(host.executor, _disk_space, host)


def _disk_space(host: Host) -> Check:
    free = {place: _free(place) for place in (host.paths.data, host.paths.state, host.paths.cache)}
    place = min(free, key=lambda p: free[p])
    summary = f"{format_size(free[place])} free for {place}"
    if free[place] >= _ENOUGH:
        return good("disk space", summary)
    fix = "remove what is not used: vmgr image ls, vmgr image rm"
    if free[place] >= _TOO_LITTLE:
        return warning("disk space", summary, fix)
    return error("disk space", summary, fix)


def _free(place: Path) -> int:
    """What an ordinary user may still write in the file system that `place` is or will be in."""
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


async def memory(host: Host) -> Check:
    """Whether a machine of the default size fits."""
    wanted = int(host.config.get("machine.memory"))
    loop = asyncio.get_running_loop()
    free = await loop.run_in_executor(host.executor, available_memory, host.proc / "meminfo")
    summary = f"{format_size(free)} available; a new machine gets {format_size(wanted)}"
    if free >= wanted:
        return good("memory", summary)
    half = max(128, (free >> 21) // 64 * 64)
    return warning("memory", summary, f"vmgr config set machine.memory {half}M")


async def directories(host: Host) -> Check:
    """Whether vmgr's directories are the person's own and closed to others."""
    return await asyncio.get_running_loop().run_in_executor(host.executor, _directories, host)


def _directories(host: Host) -> Check:
    paths = host.paths
    for place in (paths.config, paths.state, paths.cache, paths.data, paths.runtime):
        problem = _problem(host, place)
        if problem is not None:
            summary, fix = problem
            return error("directories", f"{place} {summary}", fix)
    return good("directories", "yours, and closed to others")


def _problem(host: Host, place: Path) -> tuple[str, str | None] | None:
    """What is wrong with a directory, and the command that mends it."""
    quoted = shlex.quote(os.fspath(place))
    try:
        found = place.lstat()
    except FileNotFoundError:
        parent = next(p for p in place.parents if p.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return None  # it is made when it is needed
        fix = host.as_root(f"install -d -m 700 -o {host.user} {quoted}")
        return f"cannot be made in {parent}", fix
    close = f"chmod 700 {quoted}"
    faults = (
        (not stat.S_ISDIR(found.st_mode), "is not a directory", f"mv {quoted} {quoted}.old"),
        (
            found.st_uid != host.uid,
            "belongs to another user",
            host.as_root(f"chown -R {host.user}: {quoted}"),
        ),
        (bool(stat.S_IMODE(found.st_mode) & 0o077), "is open to other users", close),
        (~found.st_mode & stat.S_IRWXU != 0, "is closed to yourself", close),
        (
            bool(os.statvfs(place).f_flag & os.ST_RDONLY),
            "is in a file system that is mounted read-only",
            None,
        ),
    )
    return next(((summary, fix) for wrong, summary, fix in faults if wrong), None)


async def settings(host: Host) -> Check:
    """Whether the settings file says what somebody meant."""
    entries = host.config.entries()
    if host.config.warnings:
        return warning("settings", host.config.warnings[0], f"edit {host.paths.config_file}")
    changed = sum(entry.is_set for entry in entries)
    return good("settings", f"{changed} of {len(entries)} differ from the default")
