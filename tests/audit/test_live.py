"""The audit of a real helper with real machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL

from vmgr.audit import Vmm
from vmgr.audit import audit as look_at
from vmgr.paths import Paths

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm

AS_A_FUNCTION = "from vmgr.helper.main import main; main()"


def audit(home: Home) -> Any:
    done = home.vmgr("doctor", "--audit", "--json", check=False)
    report = json.loads(done.stdout)
    assert done.returncode == bool(report["problems"])
    return report


def roles(report: Any) -> list[str]:
    return sorted(process["role"] for process in report["processes"])


def machines(report: Any) -> set[str]:
    return {p["machine"] for p in report["processes"] if p["role"] == "vmm" and p["machine"]}


def network(report: Any) -> set[tuple[int, str]]:
    """Holder, switchboard and egress; none, where this user cannot have a network."""
    found = {(p["pid"], p["program"]) for p in report["processes"] if p["role"] == "network"}
    assert len(found) == (3 if os.access("/dev/net/tun", os.W_OK) else 0)
    return found


def test_all_rules_are_kept_with_machines_under_load_and_after_a_restart(home: Home) -> None:
    assert audit(home)["problems"] == []
    for name in ("one", "two"):
        home.vmgr("create", name, "--image", "debian-minimal", *SMALL)
        home.vmgr("start", name)
    report = audit(home)
    assert report["problems"] == []
    assert machines(report) == {"one", "two"}
    assert roles(report).count("vmm") >= 2
    assert roles(report).count("monitor") == roles(report).count("vmm") + len(network(report))
    parts = network(report)

    busy = home.start("exec", "one", "--", "sh", "-c", "echo up; exec yes")
    assert busy.stdout is not None
    assert busy.stdout.read(3) == b"up\n"
    # It goes on writing, and nobody reads: the audit is of a helper in the middle of its work.
    assert audit(home)["problems"] == []
    busy.kill()
    busy.communicate()

    before = {home.json("info", name)["vmm"]["pid"] for name in ("one", "two")}
    home.kill_helper()
    report = audit(home)
    assert report["problems"] == []
    assert network(report) == parts, "those that an earlier helper started are seen as well"
    assert before <= {p["pid"] for p in report["processes"] if p["role"] == "vmm"}
    text = home.vmgr("doctor", "--audit").stdout.decode()
    assert "all rules kept" in text
    assert "not dumped" in text
    assert home.json("info", "one")["vmm"]["sandbox"] in {"namespaces", "full"}


def test_a_broken_rule_is_told_and_exits_with_1(bare_home: Home) -> None:
    """A helper that was not started as a program, which would have rid itself of the token."""
    ready, told = os.pipe()
    helper = subprocess.Popen(
        [sys.executable, "-P", "-c", AS_A_FUNCTION, "--ready-fd", str(told)],
        env={**bare_home.environment, "A_TOKEN": "hunter2"}, pass_fds=(told,),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(told)
    try:
        with os.fdopen(ready, "rb") as line:
            assert line.readline() == b"ready\n"
        said = f"helper {helper.pid}: its environment has A_TOKEN (rule 9)"
        problems = audit(bare_home)["problems"]
        assert said in problems
        done = bare_home.vmgr("doctor", "--audit", check=False)
        assert done.returncode == 1
        assert said in done.stdout.decode()
        assert b"hunter2" not in done.stdout
    finally:
        helper.terminate()
        helper.wait()


def test_a_process_that_is_no_vmm_of_ours_is_seen_through(home: Home) -> None:
    environment = {"TOKEN": "x", "PATH": os.environ["PATH"]}
    other = subprocess.Popen(["sleep", "100"], cwd="/usr", env=environment)
    try:
        paths = Paths.from_environment(home.environment)
        report = look_at(paths, [Vmm(other.pid, "x", "namespaces")], [])
    finally:
        other.kill()
        other.wait()
    [bad] = [p for p in report.processes if p.machine == "x"]
    said = " ".join(bad.problems)
    for broken in ("TOKEN", "/usr", "no_new_privs", "no filter", "the helper's mnt namespace"):
        assert broken in said
    assert "TOKEN=x" not in said, "names, never values"
