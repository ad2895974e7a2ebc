"""Control groups: the files that are written, and (where there is one) the real hierarchy."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.sandbox.cgroup import (
    GroupLimits,
    attach,
    find_parent,
    group_of,
    make_group,
    remove_group,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_limits_leave_room_for_qemu_itself(tmp_path: Path) -> None:
    group = make_group(tmp_path, "0123456789ab", GroupLimits(cpus=3, memory_bytes=1 << 30))
    assert int((group / "memory.max").read_text()) > 1 << 30
    assert (group / "memory.oom.group").read_text() == "1", "half a machine is none"
    assert (group / "cpu.max").read_text() == "400000 100000"
    assert 64 + 3 < int((group / "pids.max").read_text()) < 1000


def test_why_there_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("1:name=systemd:/\n")
    assert find_parent(tmp_path) == (None, "this host has no unified control groups")


# -- the real thing ------------------------------------------------------------------------------


def writable_hierarchy() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = Path(before.split()[4])
        if after.startswith("cgroup2 ") and os.access(place, os.W_OK):
            return place
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    place = writable_hierarchy()
    if place is None:
        pytest.skip("no control groups of version 2 can be made here")
    made = place / f"vmgr-machine-test{secrets.token_hex(4)}"
    made.mkdir()
    yield made
    remove_group(made)
    assert not made.exists()


def test_processes_are_put_into_a_real_group(group: Path) -> None:
    child = subprocess.Popen(["sleep", "100"])
    try:
        attach(group, child.pid, 2**22 - 1)
        assert group_of(child.pid) == group
        assert group_of(os.getpid()) is None
        remove_group(group)
        assert group.exists(), "it has a process"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
