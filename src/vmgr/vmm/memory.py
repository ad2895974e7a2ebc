"""Whether the host has the memory that a machine is to have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vmgr.errors import ResourceError
from vmgr.machine.sizes import format_size

__all__ = ["available_memory", "check_memory"]

_MEMINFO: Final = Path("/proc/meminfo")


def available_memory(meminfo: Path = _MEMINFO) -> int:
    """Bytes that programs can take without swapping: MemAvailable, see proc(5)."""
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ResourceError("the host does not tell how much memory it has", next_step="mount /proc")


def check_memory(name: str, wanted: int, meminfo: Path = _MEMINFO) -> None:
    """See that machine `name` can have `wanted` bytes now.

    Memory is taken as the machine touches it, so one that could not have all of it might start, and
    then die, or have another program die, in the middle of its work.

    Raises:
        ResourceError: it cannot, with both figures.
    """
    available = available_memory(meminfo)
    if wanted > available:
        raise ResourceError(
            f"machine {name} needs {format_size(wanted)} of memory, "
            f"but the host has only {format_size(available)} left",
            next_step="stop other machines or programs, or give it less memory",
            details={"machine": name, "needed": wanted, "available": available},
        )
