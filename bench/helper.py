"""What the helper itself costs: its start, its memory, its idling."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clock import Row, stopwatch
from vmgr.api.models import CreateMachine

if TYPE_CHECKING:
    from vmgr.client.sync import Client

RSS_GOAL_MB = 60.0
IDLE_GOAL_PERCENT = 0.1
START_GOAL_MS = 500.0
IDLE_SECONDS = 20.0


def cpu_seconds(pid: int) -> float:
    """User and system time so far: fields 14 and 15 of /proc/PID/stat, see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def stop(client: Client) -> None:
    """Stop the helper and wait for the end of its process."""
    pidfd = os.pidfd_open(client.helper_status().pid)
    try:
        client.helper_stop()
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(30_000):
            raise SystemExit("bench: the helper does not stop")
    finally:
        os.close(pidfd)


def measure(client: Client, image: str | None, rounds: int) -> list[Row]:
    start = Row("helper: start to first answer", "ms", goal=f"<= {START_GOAL_MS:.0f} ms")
    fresh = Row("helper: memory (RSS), fresh", "MB", goal=f"<= {RSS_GOAL_MB:.0f} MB")
    used = Row("helper: memory (RSS), one machine", "MB", goal=f"<= {RSS_GOAL_MB:.0f} MB")
    idle = Row("helper: CPU when idle, one machine", "%", goal=f"<= {IDLE_GOAL_PERCENT} %")
    for _ in range(rounds):
        stop(client)
        with stopwatch() as watch:
            pid = client.helper_status().pid
        start.samples.append(watch.milliseconds)
        fresh.samples.append(resident_mb(pid))
    machine = client.machine_create(CreateMachine(name="bench-idle", image=image))
    try:
        client.machine_start(machine.name)
        pid = client.helper_status().pid
        # What follows a start (logging, tidying) is not idling.
        time.sleep(3)
        before, began = cpu_seconds(pid), time.perf_counter()
        time.sleep(IDLE_SECONDS)
        spent = cpu_seconds(pid) - before
        idle.samples.append(100 * spent / (time.perf_counter() - began))
        used.samples.append(resident_mb(pid))
    finally:
        client.machine_remove(machine.name, force=True)
    start.met = (start.median or 0) <= START_GOAL_MS
    fresh.met = (fresh.median or 0) <= RSS_GOAL_MB
    used.met = (used.median or 0) <= RSS_GOAL_MB
    idle.met = (idle.median or 0) <= IDLE_GOAL_PERCENT
    return [start, fresh, used, idle]
