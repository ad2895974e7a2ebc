"""The helper as a service of a real user manager, with a machine that goes on through it all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, kill_and_wait, wait_for_end
from tests.service.manager import Manager, needs_manager

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Home

pytestmark = [pytest.mark.vm, *needs_manager]


@pytest.fixture
def manager(quick_home: Home) -> Iterator[Manager]:
    manager = Manager(quick_home)
    yield manager
    manager.close()


def environment_of(pid: int) -> set[str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {os.fsdecode(entry.partition(b"=")[0]) for entry in entries if entry}


def test_a_life_with_systemd(quick_home: Home, manager: Manager) -> None:
    home = quick_home
    home.vmgr("create", "web", *SMALL, "--image", "debian-minimal")
    home.vmgr("start", "web")
    vmms = home.vmms()
    pid = it_is_handed_over(home, manager)
    pid = it_is_stopped_and_started_when_needed(home, manager, pid)
    pid = it_is_restarted_and_killed(home, manager, pid)
    home.vmgr("exec", "web", "--", "touch", "/run/still-the-same")
    it_is_taken_back(home, pid)
    home.vmgr("exec", "web", "--", "test", "-e", "/run/still-the-same")
    assert home.vmms() == vmms, "the machine has noticed nothing"
    the_session_ends_and_the_next_begins(home, manager)


def it_is_handed_over(home: Home, manager: Manager) -> int:
    by_command = home.helper_pid()
    said = home.vmgr("helper", "install").stdout.decode()
    assert "1 machine goes on" in said
    assert "loginctl enable-linger" in said
    wait_for_end(by_command)
    now = home.json("helper", "status")
    assert now["managed"]
    pid = int(now["pid"])
    assert manager.show("vmgr-helper.service", "MainPID") == str(pid)
    assert manager.show("vmgr-helper.service", "ActiveState") == "active", "it said READY=1"
    assert manager.show("vmgr-helper.service", "StatusText") == "1 machine runs"
    assert not {"SECRET_TOKEN", "DISPLAY"} & environment_of(pid)
    assert home.vmgr("doctor", "--audit").returncode == 0
    check = next(c for c in home.json("doctor")["checks"] if c["name"] == "service manager")
    assert check["status"] == "ok", check
    return pid


def it_is_stopped_and_started_when_needed(home: Home, manager: Manager, pid: int) -> int:
    home.vmgr("helper", "stop")
    wait_for_end(pid)
    assert home.vmgr("helper", "status", check=False).returncode == 3, "to look is not to start"
    home.vmgr("exec", "web", "--", "true")
    after = int(home.json("helper", "status")["pid"])
    assert manager.show("vmgr-helper.service", "MainPID") == str(after)
    return after


def it_is_restarted_and_killed(home: Home, manager: Manager, pid: int) -> int:
    manager.systemctl("restart", "vmgr-helper.service")
    wait_for_end(pid)
    after = int(home.json("helper", "status")["pid"])
    assert after != pid
    kill_and_wait(after)
    last = home.helper_pid()
    assert manager.show("vmgr-helper.service", "MainPID") == str(last)
    return last


def it_is_taken_back(home: Home, pid: int) -> None:
    own = home.root / "config/systemd/user/vmgr-helper.service.d/own.conf"
    own.parent.mkdir()
    own.write_text("[Service]\n")
    home.vmgr("helper", "uninstall")
    wait_for_end(pid)
    left = [p.name for p in (home.root / "config/systemd/user").rglob("*") if p.is_file()]
    assert left == [own.name]
    home.vmgr("ls")
    assert not home.json("helper", "status")["managed"]


def the_session_ends_and_the_next_begins(home: Home, manager: Manager) -> None:
    home.vmgr("config", "set", "autostart.machines", "web")
    home.vmgr("helper", "install")
    pid = home.json("helper", "status")["pid"]
    manager.end()
    wait_for_end(pid)
    assert home.vmms() == []
    assert " -> suspended" in home.logs(), manager.log()
    # With its runtime directory, as logind does it.
    shutil.rmtree(home.root / "run")
    (home.root / "run").mkdir(mode=0o700)
    again = Manager(home)
    try:
        assert again.show("vmgr-session.service", "ActiveState") == "active"
        assert again.show("vmgr-helper.service", "MainPID") != "0", again.log()
        home.wait_for_event("machine.status", 0, before="suspended", after="starting")
    finally:
        again.close()
