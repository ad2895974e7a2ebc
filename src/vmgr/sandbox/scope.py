"""A control group of our own from systemd: a scope with `Delegate=yes` around this process.

A helper that a shell started is in the shell's group, which is not its own to divide. The person's
service manager (of root: the system's) moves it into a scope when asked to, by the call that
systemd-run makes. Machines' groups lie within and keep the scope there when the helper has gone.

A helper that systemd started as a service asks as well. Its own group it could divide, but a group
that is divided holds no processes, so that the next helper could not be started in it while
machines run. systemd goes on watching its service by the number of its first process, wherever
that is, and machines are in no group that ends with the service.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from pathlib import Path
from typing import Final

from vmgr.spawner import ProcessFailedError, StopPolicy, minimal_environment, run

__all__ = ["enter_scope", "is_service", "scope_call"]

_DEADLINE: Final = 5.0
_SETTLED_WITHIN: Final = 2.0
_TURN: Final = 0.01
_RUNNING: Final = Path("/run/systemd/system")  # sd_booted(3)
# Of vmgr.identity; what ends machines in an orderly way must have done so before the scope ends.
_BEFORE: Final = ("vmgr-helper.service", "vmgr-session.service")


def is_service(proc: Path = Path("/proc/self")) -> bool:
    """Whether systemd started this process as the helper's service."""
    return any(line.rpartition("/")[2] == _BEFORE[0] for line in _groups(proc))


def scope_call(pid: int, uid: int, *, user: bool) -> list[str]:
    """The command that asks for a scope around a process, see org.freedesktop.systemd1(5).

    Args:
        user: ask the person's manager, not the system's.
    """
    # Stopping goes the other way round: the scope ends after the services that end machines, or
    # that are ended with those in them.
    before = _BEFORE if user else (f"user@{uid}.service",)
    return [
        "busctl", "--user" if user else "--system", "call",
        "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
        "StartTransientUnit", "ssa(sv)a(sa(sv))", f"vmgr-{pid}.scope", "fail", "5",
        "Description", "s", "vmgr: machines of this user",
        "Delegate", "b", "true",
        "PIDs", "au", "1", str(pid),
        # A scope is stopped when the session ends, unless it is in a slice that goes on.
        "Slice", "s", "app.slice" if user else "system.slice",
        "Before", "as", str(len(before)), *before,
        "0",
    ]  # fmt: skip


async def enter_scope() -> str | None:
    """Have systemd move this process into a scope of its own; why not, when it does not."""
    if not await asyncio.to_thread(_RUNNING.is_dir):
        return "systemd does not run here"
    pid, uid = os.getpid(), os.getuid()
    # root has a user manager as well, but a shell of root's is seldom in it.
    user = uid != 0 or any(f"/user@{uid}.service/" in line for line in _groups(Path("/proc/self")))
    environment = minimal_environment(XDG_RUNTIME_DIR=f"/run/user/{uid}")
    try:
        await run(
            scope_call(pid, uid, user=user),
            env=environment,
            deadline=_DEADLINE,
            policy=StopPolicy(ask=None),
        )
    except FileNotFoundError:
        return "busctl is not installed"
    except (OSError, ProcessFailedError, TimeoutError) as error:
        return f"systemd gives none ({error or 'no answer'})"
    # The call is answered when the work is queued, and the kernel tells nobody of a move.
    moved = await asyncio.to_thread(_wait_until_in, f"/vmgr-{pid}.scope")
    return None if moved else "systemd did not move this process"


def _wait_until_in(group: str) -> bool:
    deadline = time.monotonic() + _SETTLED_WITHIN
    while group not in Path("/proc/self/cgroup").read_text(encoding="ascii"):
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], _TURN)
    return True


def _groups(proc: Path) -> list[str]:
    try:
        return (proc / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
