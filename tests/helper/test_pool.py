"""Machines that wait, running, for the next run of their kind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm

KIND = (*SMALL, "debian-minimal")
HANG = 120.0


def until_vmms(home: Home, count: int) -> None:
    """Wait until the helper has so many machines, seen or not."""
    deadline = time.monotonic() + HANG
    while len(home.vmms()) != count:
        assert time.monotonic() < deadline, home.logs()
        time.sleep(0.05)


def fill(home: Home, size: int) -> None:
    home.vmgr("template", "build", *KIND)
    home.vmgr("config", "set", "pool.size", str(size))
    home.vmgr("run", *KIND, "--", "true")
    until_vmms(home, size)


def test_a_run_takes_one_that_waits(template_home: Home) -> None:
    home = template_home
    fill(home, 2)
    # Nobody sees them.
    assert home.json("ls") == []
    assert home.json("helper", "status")["machines_total"] == 0
    waiting = set(home.vmms())
    seen = set()
    for _ in range(3):
        out = home.vmgr(
            "run", *KIND, "--", "sh", "-c", "hostname; cat /proc/sys/kernel/random/uuid"
        )
        seen |= set(out.stdout.decode().split())
    assert len(seen) == 6
    until_vmms(home, 2)
    assert not waiting & set(home.vmms())
    # One of another kind is not taken, and those that wait are of that kind from then on.
    out = home.vmgr("run", "--memory", "320M", "--cpus", "1", "debian-minimal", "--",
                    "sh", "-c", "grep MemTotal /proc/meminfo")  # fmt: skip
    assert int(out.stdout.split()[1]) > 262_144
    until_vmms(home, 2)
    home.vmgr("config", "set", "pool.size", "0")
    until_vmms(home, 0)


def test_what_waits_goes(template_home: Home) -> None:
    home = template_home
    fill(home, 1)
    # With its helper: the next one knows of no such machine.
    home.kill_helper()
    assert home.json("ls") == []
    until_vmms(home, 0)
    home.vmgr("run", *KIND, "--", "true")
    until_vmms(home, 1)
    home.vmgr("helper", "stop")
    assert home.vmms() == []
    assert home.machine_directories() == []
    # When nobody has used one for a while, and when it has died meanwhile.
    home.vmgr("run", *KIND, "--", "true")
    until_vmms(home, 1)
    (pid,) = home.vmms()
    from tests.conftest import kill_and_wait

    kill_and_wait(pid)
    assert home.vmgr("run", *KIND, "--", "echo", "mine").stdout == b"mine\n"
    home.vmgr("config", "set", "pool.keep", "1")
    home.vmgr("run", *KIND, "--", "true")
    until_vmms(home, 0)


def test_a_pool_takes_its_share_of_memory_at_most(template_home: Home) -> None:
    home = template_home
    home.vmgr("template", "build", *KIND)
    home.vmgr("config", "set", "pool.size", "32")
    home.vmgr("config", "set", "pool.memory_percent", "2")
    home.vmgr("run", *KIND, "--", "true")
    deadline = time.monotonic() + HANG
    while "the pool has its share of memory" not in home.logs():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    import os

    share = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.02
    until_vmms(home, int(share // (256 << 20)))
