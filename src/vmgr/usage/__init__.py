"""What processes, interfaces and the host have used so far, as /proc counts it."""

from __future__ import annotations

from vmgr.usage.procfs import (
    HostCounters,
    MemoryUse,
    Traffic,
    cpu_seconds,
    host_counters,
    memory_use,
    traffic_of,
)

__all__ = [
    "HostCounters",
    "MemoryUse",
    "Traffic",
    "cpu_seconds",
    "host_counters",
    "memory_use",
    "traffic_of",
]
