"""How much is used now: what two answers of the `usage` operation differ by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from vmgr.api.models import MachineStatus
    from vmgr.api.usage import HostUsage, MachineUsage, Usage

__all__ = ["HostLoad", "Load", "MachineLoad", "load_between"]


class MachineLoad(Struct, frozen=True, kw_only=True):
    """What a machine used per second between two moments, and what it holds now.

    None: it cannot be told, or there is nothing yet to compare with.
    """

    name: str
    status: MachineStatus
    cpus: int
    cpu_percent: float | None
    """Of one CPU; a machine of two may use 200."""
    memory_bytes: int
    pss_bytes: int | None
    disk_read_bytes_per_second: float | None
    disk_written_bytes_per_second: float | None
    network_received_bytes_per_second: float | None
    network_sent_bytes_per_second: float | None
    uptime: float | None


class HostLoad(Struct, frozen=True, kw_only=True):
    """The same of the host."""

    cpus: int
    cpu_percent: float | None
    """Of one CPU; with two it may be 200."""
    memory_bytes: int
    memory_available_bytes: int


class Load(Struct, frozen=True, kw_only=True):
    """All of it."""

    at: float
    seconds: float | None
    """What the rates are means over."""
    host: HostLoad
    machines: list[MachineLoad]
    """The busiest first."""


def load_between(before: Usage | None, after: Usage) -> Load:
    """What was used between two answers; those of two helpers can be compared too.

    A machine that was started in between counts from its start.
    """
    seconds = after.clock - before.clock if before is not None else 0.0
    earlier = {} if before is None else {(m.id, m.vmm_pid): m for m in before.machines}
    loads = [
        _machine(earlier.get((now.id, now.vmm_pid)), now, seconds, after.at)
        for now in after.machines
    ]
    loads.sort(key=lambda load: (-(load.cpu_percent or 0), load.name))
    return Load(
        at=after.at,
        seconds=seconds if seconds > 0 else None,
        host=_host(None if before is None else before.host, after.host, seconds),
        machines=loads,
    )


def _host(before: HostUsage | None, now: HostUsage, seconds: float) -> HostLoad:
    return HostLoad(
        cpus=now.cpus,
        cpu_percent=_percent(
            None if before is None else before.cpu_seconds, now.cpu_seconds, seconds
        ),
        memory_bytes=now.memory_bytes,
        memory_available_bytes=now.memory_available_bytes,
    )


def _machine(
    before: MachineUsage | None, now: MachineUsage, seconds: float, at: float
) -> MachineLoad:
    def rate(counter: str) -> float | None:
        earlier = 0 if before is None else getattr(before, counter)
        return _rate(earlier, getattr(now, counter), seconds)

    return MachineLoad(
        name=now.name,
        status=now.status,
        cpus=now.cpus,
        cpu_percent=_percent(
            0.0 if before is None else before.cpu_seconds, now.cpu_seconds, seconds
        ),
        memory_bytes=now.memory_bytes,
        pss_bytes=now.pss_bytes,
        disk_read_bytes_per_second=rate("disk_read_bytes"),
        disk_written_bytes_per_second=rate("disk_written_bytes"),
        network_received_bytes_per_second=rate("network_received_bytes"),
        network_sent_bytes_per_second=rate("network_sent_bytes"),
        uptime=None if now.started_at is None else max(0.0, at - now.started_at),
    )


def _percent(before: float | None, now: float | None, seconds: float) -> float | None:
    rate = _rate(before, now, seconds)
    return None if rate is None else 100 * rate


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    if before is None or now is None or seconds <= 0:
        return None
    # A counter that has become smaller has begun anew: a tap that was plugged in again, say.
    return (now - before if now >= before else now) / seconds
