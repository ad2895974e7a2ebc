"""Processes of the network that no record names: a helper died before it had written them down."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from vmgr.spawner.process import parent_of, start_time_of

__all__ = ["MARK", "marked", "strays"]

MARK: Final = "VMGR_NETWORK"
"""In the environment of each: whose it is, by its directory of sockets."""


def marked(runtime: Path) -> list[int]:
    """This user's processes of the network whose sockets are in `runtime`; reads all of /proc."""
    entry = os.fsencode(f"{MARK}={runtime}")
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # another user's, or it has ended
                if entry in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return sorted(found)


def strays(runtime: Path, known: set[int]) -> list[tuple[int, int]]:
    """Those that are neither in `known` nor monitors of them: pid and start time."""
    monitors = {parent_of(pid) for pid in known}
    return [
        (pid, began)
        for pid in marked(runtime)
        if pid not in known | monitors and (began := start_time_of(pid)) is not None
    ]
