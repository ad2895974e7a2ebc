"""Machines that start with the session, and end with it, where there is no systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, wait_for_end

from vmgr.client.sync import Client
from vmgr.paths import Paths

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm


def session_ends(home: Home) -> None:
    """What the unit of the session has the helper do."""
    pid = home.helper_pid()
    Client(Paths.from_environment(home.environment), launch=False).helper_stop("session-end")
    wait_for_end(pid)


def status(home: Home, name: str) -> str:
    return next(str(m["status"]) for m in home.json("ls") if m["name"] == name)


def test_a_session_begins_and_ends(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", "web", *SMALL, "--image", "debian-minimal")
    home.vmgr("config", "set", "autostart.machines", "gone web")
    home.vmgr("helper", "restart")
    assert status(home, "web") == "stopped", "the session has begun long ago"

    # As after log-out or a reboot.
    home.vmgr("helper", "stop")
    (home.root / "run/vmgr/session").write_text("another boot")
    home.wait_for_event("machine.status", 0, after="running")
    assert home.wait_for_event("machine.autostart-failed", 0)["machine"] == "gone"

    # Suspended at its end; it goes on with the next.
    session_ends(home)
    assert home.vmms() == []
    home.wait_for_event("machine.status", 0, before="suspended", after="starting")
    home.wait_for_event("machine.status", 0, after="running")
