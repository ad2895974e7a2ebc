"""What machines and their host use: counters, so that asking changes nothing and nobody is known.

A counter says how much there has been so far; two answers, compared, say how much there is now
(`vmgr.client.load`). None stands for what cannot be told: it never means 0.
"""

from __future__ import annotations

from msgspec import field

from vmgr.api.models import MachineStatus, Model

__all__ = ["HostUsage", "MachineUsage", "Usage"]


class MachineUsage(Model, frozen=True, kw_only=True):
    """What one machine has used since its VMM was started."""

    id: str
    name: str
    status: MachineStatus
    vmm_pid: int
    started_at: float | None
    cpus: int
    cpu_seconds: float | None
    """CPU time of all its VMM's threads."""
    memory_bytes: int
    """What the machine believes to have."""
    pss_bytes: int | None
    """Real memory of its VMM; what it shares with others is divided among them."""
    rss_bytes: int | None
    """Real memory of its VMM; what is shared counts in full."""
    swap_bytes: int | None
    disk_read_bytes: int | None
    """As the machine reads its disk; the host may have had it in memory."""
    disk_written_bytes: int | None
    network_received_bytes: int | None
    """By the machine; None where the network is QEMU's own, which does not count."""
    network_sent_bytes: int | None


class HostUsage(Model, frozen=True, kw_only=True):
    """This computer."""

    cpus: int
    cpu_seconds: float
    """Of all CPUs together, busy with whatever it may be."""
    memory_bytes: int
    memory_available_bytes: int


class Usage(Model, frozen=True, kw_only=True):
    """What has been used so far, of one moment."""

    at: float
    clock: float
    """Seconds of a clock that nobody sets, for the time between two answers of one helper."""
    host: HostUsage
    machines: list[MachineUsage] = field(default_factory=list)
    """Those that have a VMM, oldest first."""
