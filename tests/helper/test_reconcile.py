"""Helper or VMM killed, the host restarted: the next command finds the truth."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, kill_and_wait

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm


def edit_rows(home: Home, old: str, new: str) -> None:
    with sqlite3.connect(home.root / "state/vmgr/vmgr.db") as db:
        change = "CAST(replace(CAST(row AS TEXT), ?, ?) AS BLOB)"
        db.execute(f"UPDATE machines SET row={change}", (old, new))
    db.close()


def test_a_killed_helper_is_replaced_and_its_machines_go_on(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    before = home.json("info", "m")
    home.vmgr("exec", "-d", "m", "--", "sh", "-c", "echo begun; sleep 1000")
    (job,) = home.json("jobs", "m")
    for _ in range(3):
        old = home.kill_helper()
        after = home.json("info", "m")
        assert home.helper_pid() != old
        assert after["status"] == "running"
        assert (after["boot_id"], after["vmm"]) == (before["boot_id"], before["vmm"])
        assert home.vmgr("exec", "m", "--", "echo", "hello").stdout == b"hello\n"
        (again,) = [j for j in home.json("jobs", "m") if j["job"] == job["job"]]
        assert (again["pid"], again["exit"]) == (job["pid"], None)
    # One with another version's devices goes on, but is not saved: nobody could let it go on then.
    home.kill_helper()
    edit_rows(home, '"layout":1', '"layout":0')
    refused = home.vmgr("suspend", "m", check=False)
    assert refused.returncode == 1
    assert b"restart it first: vmgr restart m" in refused.stderr
    assert home.vmgr("exec", "m", "--", "echo", "hello").stdout == b"hello\n"
    home.vmgr("restart", "m")
    home.vmgr("suspend", "m")
    home.vmgr("stop", "m")
    assert home.vmms() == []


def test_a_foreground_exec_survives_the_helper(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    script = "seq 1 600000; read x; echo $x; exit 7"
    client = home.start("exec", "-i", "m", "--", "sh", "-c", script)
    assert client.stdout is not None
    received = client.stdout.read1(1000)
    home.kill_helper()
    rest, errors = client.communicate(b"goodbye\n", timeout=120)
    lines = (received + rest).splitlines()
    assert client.returncode == 7, errors
    assert lines[-1] == b"goodbye"
    assert lines[:-1] == [b"%d" % i for i in range(1, 600_001)]


def test_a_vmm_that_died_while_no_helper_ran(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    home.kill_helper()
    kill_and_wait(home.vmms()[0])
    info = home.json("info", "m")
    assert info["status"] == "stopped"
    assert info["status_reason"] == "its VMM ended unobserved"
    home.vmgr("start", "m")
    assert home.vmgr("exec", "m", "--", "true").returncode == 0


def test_a_vmm_that_dies_is_noticed_and_explained(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    client = home.start("exec", "m", "--", "sleep", "1000")
    while not home.json("jobs", "m"):
        pass
    kill_and_wait(home.vmms()[0])
    _, errors = client.communicate(timeout=30)
    assert client.returncode == 125
    assert b"lost the agent of m" in errors
    info = home.json("info", "m")
    assert info["status"] == "stopped"
    assert info["status_reason"] == "its VMM was killed by SIGKILL"


def test_a_restarted_host_leaves_stopped_machines(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    home.kill_helper()
    kill_and_wait(home.vmms()[0])
    # What a reboot leaves: the row of another boot, stale sockets and a lock file.
    edit_rows(home, '"host_boot_id":"', '"host_boot_id":"before-')
    assert (home.root / "run/vmgr/helper.sock").exists()
    info = home.json("info", "m")
    assert (info["status"], info["status_reason"]) == ("stopped", "the host was restarted")
    home.vmgr("start", "m")


def test_residue_is_removed(home: Home) -> None:
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.kill_helper()
    stray = home.root / "state/vmgr/machines/ffffffffffff"
    stray.mkdir()
    (stray / "disk.qcow2").write_bytes(b"x")
    edit_rows(home, '"status":"stopped"', '"status":"removing"')
    assert home.json("ls") == []
    assert home.machine_directories() == []


@pytest.mark.parametrize("pause", [0.05, 0.3, 0.6, 1.2, 2.0])
def test_killed_while_a_machine_starts(home: Home, pause: float) -> None:
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.helper_pid()
    client = home.start("start", "m")
    time.sleep(pause)  # where in the start it hits is left to chance on purpose
    home.kill_helper()
    client.communicate(timeout=120)
    # Whatever was cut: the machine can be started, and there is one VMM.
    home.vmgr("start", "m")
    assert home.vmgr("exec", "m", "--", "echo", "fine").stdout == b"fine\n"
    assert len(home.vmms()) == 1


def test_an_abandoned_ephemeral_machine_comes_back_to_its_client(quick_home: Home) -> None:
    home = quick_home
    client = home.start(
        "run", *SMALL, "debian-minimal", "--", "sh", "-c", "echo up; read x; echo got $x; exit 3"
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    home.kill_helper()
    rest, errors = client.communicate(b"it\n", timeout=120)
    assert (rest, client.returncode) == (b"got it\n", 3), errors
    assert home.json("ls") == []
    assert home.vmms() == []
    assert home.machine_directories() == []


def test_stale_files_of_a_dead_helper_need_no_hand(home: Home) -> None:
    home.helper_pid()
    home.kill_helper()
    for name in ("helper.lock", "launch.lock"):
        assert (home.root / "state/vmgr" / name).exists() or name == "launch.lock"
    assert home.helper_pid() > 0
    assert len(home.processes("vmgr.helper")) == 1


def test_only_one_helper_runs_however_many_commands_start_one(home: Home) -> None:
    clients = [home.start("ls") for _ in range(6)]
    for client in clients:
        client.communicate(timeout=60)
        assert client.returncode == 0
    assert len(home.processes("vmgr.helper")) == 1


def test_a_stopped_helper_leaves_machines_running(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "m", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "m")
    pid = home.helper_pid()
    home.vmgr("helper", "stop")
    assert pid not in home.processes("vmgr.helper")
    assert len(home.vmms()) == 1
    assert home.vmgr("exec", "m", "--", "echo", "on").stdout == b"on\n"
