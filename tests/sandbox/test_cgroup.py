"""Control groups: the files that are written, and (where there is one) the real hierarchy."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.sandbox.cgroup import (
    GroupLimits,
    attach,
    find_parent,
    group_of,
    has_controllers,
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


def test_a_tree_without_controllers_is_told_from_none(tmp_path: Path) -> None:
    """Where version 1 has them, that of version 2 is there and can limit nothing."""
    (tmp_path / "cgroup").write_text("5:memory:/\n0::/\n")
    if writable_hierarchy() is None:
        pytest.skip("no control groups of version 2 are mounted here")
    parent, why = find_parent(tmp_path)
    assert (parent is None) or has_controllers(tmp_path)
    assert has_controllers(tmp_path) or "version 1 has them" in why


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


# -- limits, where groups are ours to change -----------------------------------------------------
#
# These move processes and set up the tree that they find, so they ask to be told that it is theirs:
# tests/sandbox/test_in_a_machine.py runs them in a machine of vmgr's own.

OURS = os.environ.get("VMGR_TEST_CGROUPS", "")
ours = pytest.mark.skipif(not OURS, reason="the control groups of this host are not the tests'")

# A helper, as far as groups go: it finds its place, makes a machine's group and runs something in
# it. `limits` are those of a machine of 64 MiB, were there no overhead.
HELPER = """
import asyncio, json, os, subprocess, sys
from pathlib import Path
from vmgr.sandbox import cgroup
from vmgr.sandbox.scope import enter_scope
program, cpus, scope = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "scope"
said = asyncio.run(enter_scope()) if scope else None
parent, why = cgroup.find_parent()
assert parent is not None, (said, why)
again, _ = cgroup.find_parent()
assert again == parent, "the next helper finds the same"
limits = cgroup.GroupLimits(cpus, (64 << 20) - cgroup._OVERHEAD)
group = cgroup.make_group(parent, "0123456789ab", limits)
child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
cgroup.attach(group, child.pid)
assert cgroup.group_of(child.pid) == group
out, _ = child.communicate(b"go\\n")
events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
cgroup.remove_group(group)
print(json.dumps({"parent": str(parent), "status": child.returncode, "out": out.decode(),
                  "oom": int(events["oom_kill"]), "throttled": int(stat["nr_throttled"]),
                  "left": group.exists()}))
"""
HOG = "import sys; sys.stdin.readline(); kept = bytearray(b'x') * (256 << 20); print('alive')"
FORKS = """
import os, signal, sys
sys.stdin.readline()
made = []
try:
    while len(made) < 1000:
        made.append(os.fork() or signal.pause())
except BlockingIOError:
    pass
for pid in made:
    os.kill(pid, 9); os.waitpid(pid, 0)
print(len(made))
"""
# Until it has been held back, which the group tells; two threads of work for one CPU.
BURN = """
import os, sys
sys.stdin.readline()
group = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().split("0::")[1].strip()
child = os.fork()
while "nr_throttled 0\\n" in open(group + "/cpu.stat").read():
    for _ in range(100000): pass
if child:
    os.waitpid(child, 0)
"""


@pytest.fixture
def delegated() -> Iterator[Path]:
    place = writable_hierarchy()
    assert place is not None
    for controller in ("cpu", "memory", "pids"):
        (place / "cgroup.subtree_control").write_text(f"+{controller}")
    made = place / f"vmgr-test-{secrets.token_hex(4)}"
    made.mkdir()
    yield made
    for group in (*made.glob("*/"), made):
        group.rmdir()


def helper(program: str, *, cpus: int = 1, group: Path | None = None, how: str = "") -> Any:
    """Run one in a group, and say what it found."""
    command = [sys.executable, "-c", HELPER, program, str(cpus), how or "-"]
    if group is not None:
        joining = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", joining, "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@ours
def test_a_machine_that_takes_too_much_memory_is_ended_as_a_whole(delegated: Path) -> None:
    told = helper(HOG, group=delegated)
    assert told["parent"] == str(delegated)
    assert (told["status"], told["out"]) == (-signal.SIGKILL, "")
    assert told["oom"] >= 1
    assert not told["left"]


@ours
def test_a_machine_has_so_many_threads_and_no_more(delegated: Path) -> None:
    told = helper(FORKS, group=delegated)
    assert 0 < int(told["out"]) <= 192 + 1
    assert told["status"] == 0


@ours
def test_a_machine_gets_its_cpus_and_no_more(delegated: Path) -> None:
    assert helper(BURN, cpus=0, group=delegated)["throttled"] > 0


@pytest.mark.skipif("scope" not in OURS, reason="systemd does not run here, or is not the tests'")
def test_systemd_gives_a_helper_a_group_of_its_own() -> None:
    told = helper(HOG, how="scope")
    assert ".scope" in told["parent"]
    assert told["status"] == -signal.SIGKILL
    assert told["oom"] >= 1
