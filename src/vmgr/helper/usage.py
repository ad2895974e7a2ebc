"""What machines use, collected from where each thing is counted.

CPU and memory are read off the VMM's process, disks are asked for over QMP, the network is counted
by the taps in the switchboard's namespace. What does not answer soon is unknown; nobody waits for
a VMM that hangs.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.api.usage import HostUsage, MachineUsage, Usage
from vmgr.errors import MachineError
from vmgr.usage import cpu_seconds, host_counters, memory_use, traffic_of

if TYPE_CHECKING:
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.usage import HostCounters, MemoryUse, Traffic
    from vmgr.vmm import DiskTraffic, Vmm

__all__ = ["collect_usage"]

_DISK_DEADLINE: Final = 1.0  # seconds; QEMU answers in one millisecond


@dataclass(frozen=True)
class _Process:
    """A VMM to look at."""

    pid: int
    start_time: int | None
    interface: str | None


@dataclass(frozen=True)
class _Counted:
    """What was read of it."""

    cpu: float | None
    memory: MemoryUse | None
    traffic: Traffic | None


async def collect_usage(helper: Helper) -> Usage:
    """What all machines that have a VMM have used so far, and the host."""
    machines = [
        machine
        for machine in helper.machines.all()
        if machine.row.vmm_pid is not None and not machine.stopped.is_set()
    ]
    processes = [
        _Process(machine.row.vmm_pid or 0, machine.row.vmm_start_time, machine.row.interface)
        for machine in machines
    ]
    at = time.time()
    reading = helper.executors.in_files(_read, processes, helper.network.namespace_pid)
    (clock, host, counted), disks = await asyncio.gather(
        reading, asyncio.gather(*(_disk(machine.vmm) for machine in machines))
    )
    return Usage(
        at=at,
        clock=clock,
        host=HostUsage(
            cpus=host.cpus,
            cpu_seconds=host.cpu_seconds,
            memory_bytes=host.memory,
            memory_available_bytes=host.available,
        ),
        machines=[
            _usage(machine, process, count, disk)
            for machine, process, count, disk in zip(
                machines, processes, counted, disks, strict=True
            )
        ],
    )


def _read(
    processes: list[_Process], namespace_pid: int | None
) -> tuple[float, HostCounters, list[_Counted]]:
    # CPU times of one moment first; memory takes its time.
    clock = time.monotonic()
    host = host_counters()
    cpu = [cpu_seconds(process.pid, process.start_time) for process in processes]
    traffic = {} if namespace_pid is None else traffic_of(namespace_pid)
    memory = [memory_use(process.pid) for process in processes]
    return (
        clock,
        host,
        [
            _Counted(cpu[i], memory[i], traffic.get(process.interface or ""))
            for i, process in enumerate(processes)
        ],
    )


async def _disk(vmm: Vmm | None) -> DiskTraffic | None:
    if vmm is None:
        return None
    try:
        return await vmm.disk_traffic(_DISK_DEADLINE)
    except MachineError:
        return None


def _usage(
    machine: Machine, process: _Process, counted: _Counted, disk: DiskTraffic | None
) -> MachineUsage:
    row = machine.row
    memory, traffic = counted.memory, counted.traffic
    return MachineUsage(
        id=row.id,
        name=row.name,
        status=machine.status,
        vmm_pid=process.pid,
        started_at=row.started_at,
        cpus=row.cpus,
        cpu_seconds=counted.cpu,
        memory_bytes=row.memory_bytes,
        pss_bytes=None if memory is None else memory.pss,
        rss_bytes=None if memory is None else memory.rss,
        swap_bytes=None if memory is None else memory.swap,
        disk_read_bytes=None if disk is None else disk.read,
        disk_written_bytes=None if disk is None else disk.written,
        # The tap is the other end: what it sends, the machine receives.
        network_received_bytes=None if traffic is None else traffic.sent,
        network_sent_bytes=None if traffic is None else traffic.received,
    )
