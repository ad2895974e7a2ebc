"""Machines that wait, running, for the next run of their kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, kill_and_wait, wait_for_end

from vmgr.helper.commitment import host_memory

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm

KIND = (*SMALL, "debian-minimal")


def machines(home: Home) -> list[int]:
    """VMMs but that of a template that is just being built."""
    found = {pid: Path(f"/proc/{pid}/cmdline") for pid in home.vmms()}
    return [pid for pid, line in found.items() if b"guest=vmgr-template" not in line.read_bytes()]


def until_ready(home: Home, waiting: int, since: int) -> None:
    """Wait until so many machines wait."""
    home.wait_for_event("pool.ready", since, waiting=waiting)
    assert len(machines(home)) == waiting


def until_gone(*pids: int) -> None:
    for pid in pids:
        wait_for_end(pid)


def run(home: Home, *command: str) -> bytes:
    return home.vmgr("run", *KIND, "--", *command).stdout


def fill(home: Home, size: int) -> None:
    home.vmgr("template", "build", *KIND)
    home.vmgr("config", "set", "pool.size", str(size))
    since = home.last_event()
    run(home, "true")
    until_ready(home, size, since)


def test_a_run_takes_one_that_waits(template_home: Home) -> None:
    home = template_home
    fill(home, 2)
    # Nobody sees them.
    assert home.json("ls") == []
    assert home.json("helper", "status")["machines_total"] == 0
    waiting = set(home.vmms())
    seen = set()
    for _ in range(3):
        since = home.last_event()
        out = run(home, "sh", "-c", "hostname; cat /proc/sys/kernel/random/uuid")
        seen |= set(out.decode().split())
    assert len(seen) == 6
    until_ready(home, 2, since)
    assert not waiting & set(home.vmms())
    # What somebody agreed to is no other kind: one is taken, and the other goes on waiting.
    waiting, since = set(home.vmms()), home.last_event()
    home.vmgr(
        "run", "--yes", "--share", "/usr/share:/mnt:ro", *KIND, "--", "test", "-d", "/mnt/doc"
    )
    until_ready(home, 2, since)
    assert len(waiting & set(home.vmms())) == 1
    since = home.last_event()
    # One of another kind is not taken, and those that wait are of that kind from then on.
    other = home.vmgr("run", "--memory", "320M", "--cpus", "1", "debian-minimal", "--",
                    "sh", "-c", "grep MemTotal /proc/meminfo")  # fmt: skip
    assert int(other.stdout.split()[1]) > 262_144
    until_ready(home, 2, since)
    pids = home.vmms()
    home.vmgr("config", "set", "pool.size", "0")
    until_gone(*pids)
    assert home.vmms() == []


def test_what_waits_goes(template_home: Home) -> None:
    home = template_home
    fill(home, 1)
    # With its helper: the next one knows of no such machine.
    pids = home.vmms()
    home.kill_helper()
    assert home.json("ls") == []
    until_gone(*pids)
    since = home.last_event()
    run(home, "true")
    until_ready(home, 1, since)
    home.vmgr("helper", "stop")
    assert home.vmms() == []
    assert home.machine_directories() == []
    # When it has died meanwhile, and when nobody has used one for a while.
    since = home.last_event()
    run(home, "true")
    until_ready(home, 1, since)
    (pid,) = home.vmms()
    kill_and_wait(pid)
    home.vmgr("config", "set", "pool.keep", "1")
    since = home.last_event()
    assert run(home, "echo", "mine") == b"mine\n"
    home.wait_for_event("pool.ready", since, waiting=1)
    until_gone(*home.vmms())
    assert home.vmms() == []


def test_a_pool_takes_its_share_of_memory_at_most(template_home: Home) -> None:
    home = template_home
    share = host_memory() * 2 // 100
    fits = share // (256 << 20)
    home.vmgr("config", "set", "pool.memory_percent", "2")
    home.vmgr("template", "build", *KIND)
    home.vmgr("config", "set", "pool.size", "32")
    since = home.last_event()
    run(home, "true")
    until_ready(home, fits, since)
