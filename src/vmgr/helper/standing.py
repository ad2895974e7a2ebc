"""One line for `systemctl --user status vmgr-helper`: how many machines run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmgr.helper.helper import Helper

__all__ = ["tell_status"]


async def tell_status(helper: Helper) -> None:
    """Tell the service manager, now and with each change, until the helper stops."""
    said = ""
    while not helper.stopping.is_set():  # a follower that is behind is dropped, and begins anew
        if (line := _line(helper)) != said:
            helper.activation.notifier.status(line)
            said = line
        async for event in helper.events.follow():
            if event.kind == "machine.status" and (line := _line(helper)) != said:
                helper.activation.notifier.status(line)
                said = line


def _line(helper: Helper) -> str:
    running = helper.machines.count("running")
    return {0: "no machine runs", 1: "1 machine runs"}.get(running, f"{running} machines run")
