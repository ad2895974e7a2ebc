"""Starts at the same time are not each promised the same memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmgr.helper.commitment import host_memory
from vmgr.machine.sizes import format_size

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm

MIB = 1 << 20


def test_what_is_promised_together_is_bounded(home: Home) -> None:
    percent = -(-640 * MIB * 100 // host_memory())
    limit = host_memory() * percent // 100
    memory = limit * 2 // 5 // MIB  # two fit, three do not
    home.vmgr("config", "set", "memory.overcommit", str(percent))
    names = ("a", "b", "c")
    for name in names:
        home.vmgr(
            "create", name, "--image", "debian-minimal", "--cpus", "1", "--memory", f"{memory}M"
        )
    # One that does not start gives back what it was promised.
    home.vmgr("config", "set", "qemu.path", "/bin/false")
    assert home.vmgr("start", *names, check=False).returncode != 0
    home.vmgr("config", "unset", "qemu.path")

    starting = {name: home.start("start", name) for name in names}
    said = {name: process.communicate(timeout=180)[1] for name, process in starting.items()}
    (refused,) = [name for name, process in starting.items() if process.returncode != 0]
    assert (
        f"machine {refused} needs {format_size(memory * MIB)} of memory, but of the "
        f"{format_size(limit)} that machines may have together, "
        f"{format_size(2 * memory * MIB)} are promised to 2 others"
    ) in said[refused].decode()
    assert b"memory.overcommit" in said[refused]
    assert len(home.vmms()) == 2
    assert home.json("info", refused)["status_reason"] != "", "nothing of it was started"

    other = next(name for name in names if name != refused)
    home.vmgr("kill", other)
    home.vmgr("start", refused)
    # A helper that comes later counts those that run already.
    home.kill_helper()
    assert home.vmgr("start", other, check=False).returncode != 0
    home.vmgr("config", "set", "memory.overcommit", "1000")
    home.vmgr("start", other)
