"""A control group of our own from systemd: a scope with `Delegate=yes` around this process.

A helper that a shell started is in the shell's group, which is not its own to divide. The person's
service manager (of root: the system's) moves it into a scope when asked to, by the call that
systemd-run makes. Machines' groups lie within and keep the scope there when the helper has gone.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from pathlib import Path
from typing import Final

from vmgr.spawner import ProcessFailedError, StopPolicy, minimal_environment, run

__all__ = ["enter_scope", "scope_call"]

_DEADLINE: Final = 5.0
_SETTLED_WITHIN: Final = 2.0
_TURN: Final = 0.01
_RUNNING: Final = Path("/run/systemd/system")  # sd_booted(3)


def scope_call(pid: int, uid: int) -> list[str]:
    """The command that asks for a scope around a process, see org.freedesktop.systemd1(5)."""
    return [
        "busctl", "--system" if uid == 0 else "--user", "call",
        "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
        "StartTransientUnit", "ssa(sv)a(sa(sv))", f"vmgr-{pid}.scope", "fail", "4",
        "Description", "s", "vmgr: machines of this user",
        "Delegate", "b", "true",
        "PIDs", "au", "1", str(pid),
        # A scope is stopped when the session ends, unless it is in a slice that goes on.
        "Slice", "s", "system.slice" if uid == 0 else "app.slice",
        "0",
    ]  # fmt: skip


async def enter_scope() -> str | None:
    """Have systemd move this process into a scope of its own; why not, when it does not."""
    if not await asyncio.to_thread(_RUNNING.is_dir):
        return "systemd does not run here"
    pid, uid = os.getpid(), os.getuid()
    environment = minimal_environment(XDG_RUNTIME_DIR=f"/run/user/{uid}")
    try:
        await run(
            scope_call(pid, uid), env=environment, deadline=_DEADLINE, policy=StopPolicy(ask=None)
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
