"""Control groups of single machines (version 2), where a part of the tree is ours to divide.

That is so when the helper runs in a group that was delegated to it: a systemd unit with
`Delegate=yes`, a scope (`vmgr.sandbox.scope`), a container with a tree of its own. A group that is
divided may hold no processes itself, so the helper moves into a leaf beside its machines'. See
"Delegation" in the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmgr.mounttable import mounted

__all__ = [
    "GroupLimits",
    "attach",
    "find_parent",
    "group_of",
    "has_controllers",
    "make_group",
    "remove_group",
]

_CONTROLLERS: Final = ("cpu", "memory", "pids")
_HELPERS: Final = "vmgr-helper"
_PREFIX: Final = "vmgr-machine-"
_PERIOD: Final = 100_000  # microseconds, the kernel's default
_OVERHEAD: Final = 640 << 20  # QEMU itself, and what it translates under emulation (256 MiB)
_THREADS: Final = 192  # QEMU's pool for disk requests has up to 64, its vCPUs one each


@dataclass(frozen=True)
class GroupLimits:
    """What a machine's processes may take together."""

    cpus: int
    memory_bytes: int

    def files(self) -> dict[str, str]:
        """The group's files and what is written to them."""
        return {
            "memory.max": str(self.memory_bytes + _OVERHEAD),
            "memory.oom.group": "1",
            # One more than the vCPUs: QEMU's own thread must not be starved by them.
            "cpu.max": f"{(self.cpus + 1) * _PERIOD} {_PERIOD}",
            "pids.max": str(_THREADS + self.cpus),
        }


def find_parent(proc: Path = Path("/proc/self")) -> tuple[Path | None, str]:
    """Where groups can be made, or why nowhere.

    The helper is moved into a group of its own where that takes it.
    """
    own = _own_group(proc)
    if own is None:
        return None, "this host has no unified control groups"
    if own.name == _HELPERS:
        own = own.parent
    try:
        if (refused := _undivided(own, proc)) is not None:
            return None, refused
        if set(_CONTROLLERS) - set((own / "cgroup.subtree_control").read_text().split()):
            (own / _HELPERS).mkdir(exist_ok=True)
            attach(own / _HELPERS, os.getpid())
            for controller in _CONTROLLERS:
                (own / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError as error:
        return None, f"{own} cannot be divided: {error.strerror}"
    return own, str(own)


def _undivided(own: Path, proc: Path) -> str | None:
    """Why a group cannot be divided."""
    missing = set(_CONTROLLERS) - set((own / "cgroup.controllers").read_text().split())
    if missing and not has_controllers(proc):
        names = ", ".join(sorted(missing))
        return f"control groups of version 2 have no {names} here: version 1 has them"
    if missing:
        return f"{own} has no controller for {', '.join(sorted(missing))}"
    if not os.access(own, os.W_OK) or not os.access(own / "cgroup.subtree_control", os.W_OK):
        return f"{own} is not delegated to you"
    divided = not set(_CONTROLLERS) - set((own / "cgroup.subtree_control").read_text().split())
    # The root is exempt, and has no type.
    if not divided and _processes(own) - {os.getpid()} and (own / "cgroup.type").exists():
        return f"other processes run in {own}"
    return None


def has_controllers(proc: Path = Path("/proc/self")) -> bool:
    """Whether this host's unified groups could limit anything at all.

    Where version 1 has the controllers, as beside an old systemd or in some containers, the unified
    tree is there and empty-handed.
    """
    own = _own_group(proc)
    if own is None:
        return False
    top = own
    while (top.parent / "cgroup.controllers").exists():
        top = top.parent
    with contextlib.suppress(OSError):
        return set(_CONTROLLERS) <= set((top / "cgroup.controllers").read_text().split())
    return False


def make_group(parent: Path, machine_id: str, limits: GroupLimits) -> Path:
    """Make a machine's group; what an earlier start left of it is used again.

    Raises:
        OSError: it cannot be made.
    """
    group = parent / f"{_PREFIX}{machine_id}"
    group.mkdir(exist_ok=True)
    for name, text in limits.files().items():
        (group / name).write_text(text)
    return group


def attach(group: Path, *pids: int) -> None:
    """Put processes into a group; one that has ended is passed over.

    Raises:
        OSError: it is not permitted.
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))


def group_of(pid: int) -> Path | None:
    """The machine's group that a process is in, if it is in one."""
    own = _own_group(Path(f"/proc/{pid}"))
    return own if own is not None and own.name.startswith(_PREFIX) else None


def remove_group(group: Path) -> None:
    """Remove an empty group; one that is not empty stays, for the machine's next start."""
    with contextlib.suppress(OSError):
        group.rmdir()


def _own_group(proc: Path) -> Path | None:
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = [mount for mount in mounted() if mount.kind == "cgroup2"]
    except OSError:
        return None
    own = next((line[3:] for line in groups if line.startswith("0::")), None)
    if own is None or not mounts:
        return None
    # In a container paths may be relative to a root that is not ours: `/../..`.
    inside = os.path.relpath(own, mounts[0].root)
    return Path(os.path.normpath(f"{mounts[0].directory}/{inside}"))


def _processes(group: Path) -> set[int]:
    return set(map(int, (group / "cgroup.procs").read_text().split()))
