from __future__ import annotations

from typing import Any

import msgspec

from vmgr.api.usage import HostUsage, MachineUsage, Usage
from vmgr.client.load import load_between

HOST = HostUsage(cpus=2, cpu_seconds=10.0, memory_bytes=100, memory_available_bytes=60)
WEB = MachineUsage(
    id="1", name="web", status="running", vmm_pid=7, started_at=90.0, cpus=1, cpu_seconds=5.0,
    memory_bytes=50, pss_bytes=20, rss_bytes=30, swap_bytes=0, disk_read_bytes=1000,
    disk_written_bytes=2000, network_received_bytes=300, network_sent_bytes=400,
)  # fmt: skip


def usage(clock: float, *machines: MachineUsage, cpu: float = 10.0) -> Usage:
    host = msgspec.structs.replace(HOST, cpu_seconds=cpu)
    return Usage(at=100.0 + clock, clock=clock, host=host, machines=list(machines))


def later(machine: MachineUsage, **changes: Any) -> MachineUsage:
    return msgspec.structs.replace(machine, **changes)


def test_rates_are_means_over_the_time_between() -> None:
    now = later(WEB, cpu_seconds=6.0, disk_read_bytes=3000, network_sent_bytes=500)
    load = load_between(usage(0, WEB), usage(2, now, cpu=13.0))
    (web,) = load.machines
    assert load.seconds == 2
    assert load.host.cpu_percent == 150
    assert web.cpu_percent == 50
    assert web.disk_read_bytes_per_second == 1000
    assert web.disk_written_bytes_per_second == 0
    assert web.network_sent_bytes_per_second == 50
    assert web.uptime == 12


def test_the_first_answer_has_no_rates() -> None:
    load = load_between(None, usage(0, WEB))
    (web,) = load.machines
    assert (load.seconds, load.host.cpu_percent) == (None, None)
    assert (web.cpu_percent, web.disk_read_bytes_per_second) == (None, None)
    assert web.pss_bytes == 20


def test_unknown_is_not_nothing() -> None:
    now = later(WEB, network_sent_bytes=None, pss_bytes=None, cpu_seconds=None)
    (web,) = load_between(usage(0, WEB), usage(1, now)).machines
    assert (web.network_sent_bytes_per_second, web.pss_bytes, web.cpu_percent) == (None,) * 3
    (web,) = load_between(usage(0, now), usage(1, WEB)).machines
    assert (web.network_sent_bytes_per_second, web.cpu_percent) == (None, None)


def test_a_machine_that_was_started_in_between_counts_from_its_start() -> None:
    (web,) = load_between(usage(0), usage(10, WEB)).machines
    assert web.cpu_percent == 50
    # Another VMM of the same machine begins at 0 as well.
    again = later(WEB, vmm_pid=8, cpu_seconds=1.0)
    (web,) = load_between(usage(0, WEB), usage(10, again)).machines
    assert web.cpu_percent == 10


def test_a_counter_that_began_anew_gives_no_negative_rate() -> None:
    now = later(WEB, network_received_bytes=100)
    (web,) = load_between(usage(0, WEB), usage(1, now)).machines
    assert web.network_received_bytes_per_second == 100


def test_the_busiest_comes_first() -> None:
    names = [
        later(WEB, id=name, name=name, cpu_seconds=seconds)
        for name, seconds in (("b", 5.0), ("c", 9.0), ("a", 5.0), ("d", None))
    ]
    load = load_between(usage(0), usage(10, *names))
    assert [machine.name for machine in load.machines] == ["c", "a", "b", "d"]
