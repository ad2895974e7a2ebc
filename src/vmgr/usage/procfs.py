"""Reading what /proc counts; see proc(5).

All of it may be read of one's own processes, also of those in namespaces that one has made. A
process that has ended, or a kernel that does not count, gives None. Call it in a thread: the kernel
walks all of a process's memory for `memory_use`, which takes milliseconds, and waits for whoever
changes it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "HostCounters",
    "MemoryUse",
    "Traffic",
    "cpu_seconds",
    "host_counters",
    "memory_use",
    "traffic_of",
]

_PROC: Final = Path("/proc")
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
# /proc/PID/stat, counted from what follows the program's name.
_USER_TIME, _SYSTEM_TIME, _START_TIME = 11, 12, 19
# /proc/stat: idle and waiting for a disk are no work; guests' time is in user's already.
_IDLE: Final = {3, 4}
_BUSY_FIELDS: Final = 8
# /proc/PID/net/dev, after the interface's name.
_RECEIVED, _SENT = 0, 8


@dataclass(frozen=True)
class MemoryUse:
    """Real memory of a process, in bytes."""

    pss: int
    rss: int
    swap: int


@dataclass(frozen=True)
class Traffic:
    """Bytes that an interface has received and sent."""

    received: int
    sent: int


@dataclass(frozen=True)
class HostCounters:
    """The host: CPUs, seconds that they were busy, memory."""

    cpus: int
    cpu_seconds: float
    memory: int
    available: int


def cpu_seconds(pid: int, start_time: int | None = None) -> float | None:
    """CPU time of a process and of the threads that it has and had.

    Args:
        start_time: as /proc/PID/stat has it; another process of this number is not taken for it.
    """
    try:
        fields = _PROC.joinpath(str(pid), "stat").read_text().rpartition(")")[2].split()
        if start_time is not None and int(fields[_START_TIME]) != start_time:
            return None
        return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) * _TICK
    except (OSError, IndexError, ValueError):
        return None


def memory_use(pid: int) -> MemoryUse | None:
    """Memory of a process, what is shared divided among those that share it."""
    try:
        sizes = _sizes(_PROC.joinpath(str(pid), "smaps_rollup").read_text())
        return MemoryUse(sizes["Pss"], sizes["Rss"], sizes.get("SwapPss", 0))
    except (OSError, KeyError, ValueError):
        return None


def traffic_of(pid: int) -> dict[str, Traffic]:
    """Traffic of each interface in the network namespace of a process; empty when it has ended."""
    try:
        lines = _PROC.joinpath(str(pid), "net/dev").read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines[2:]:
        name, _, counts = line.rpartition(":")
        numbers = counts.split()
        found[name.strip()] = Traffic(int(numbers[_RECEIVED]), int(numbers[_SENT]))
    return found


def host_counters() -> HostCounters:
    """The host as a whole."""
    first = _PROC.joinpath("stat").read_text().partition("\n")[0]
    ticks = [int(field) for field in first.split()[1 : _BUSY_FIELDS + 1]]
    busy = sum(count for at, count in enumerate(ticks) if at not in _IDLE)
    sizes = _sizes(_PROC.joinpath("meminfo").read_text())
    return HostCounters(
        cpus=os.cpu_count() or 1,
        cpu_seconds=busy * _TICK,
        memory=sizes["MemTotal"],
        available=sizes["MemAvailable"],
    )


def _sizes(text: str) -> dict[str, int]:
    """`Name:  123 kB` lines, in bytes."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":  # noqa: PLR2004 (name, number, unit)
            found[words[0].removesuffix(":")] = int(words[1]) * 1024
    return found
