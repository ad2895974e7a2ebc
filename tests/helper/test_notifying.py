"""What the person is notified of, by a helper on a session bus of the test's own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import SMALL
from tests.desktop.desktop import Daemon, Desktop, needs_bus

from vmgr.api.models import Event
from vmgr.helper.helper import Helper
from vmgr.helper.notifying import DiskWatch, notification_of
from vmgr.identity import APP_ID
from vmgr.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Home


def a_helper(place: Path) -> Helper:
    """One that was not started: nothing but its parts."""

    def fatal(error: BaseException) -> None:
        raise error

    return Helper(Paths.from_environment({"VMGR_HOME": str(place)}), fatal)


def close(helper: Helper) -> None:
    helper.executors.close()


def event(kind: str, machine: str | None = "web", **data: Any) -> Event:
    return Event(seq=1, at=time.time(), kind=kind, machine=machine, data=data)


@pytest.mark.parametrize(
    ("what", "title"),
    [
        (event("machine.resume-failed", reason="no"), "web was started anew"),
        (event("machine.autostart-failed", reason="no"), "web was not started"),
        (event("template.failed", None, key="k", reason="no"), "A template could not be built"),
        (event("port.opened", port=2001, guest_port=2000, problem=""), None),
        (
            event("port.opened", port=3001, guest_port=3000, problem="taken"),
            "Port 3000 of web is 3001 here",
        ),
        (event("port.opened", port=3000, guest_port=3000, problem="x"), None),
        (event("port.opened", port=3000, guest_port=3000), None),
        (event("port.opened", port=10_022, guest_port=22, problem="for root only"), None),
        (event("machine.disk-full"), "web stands still"),
        (event("host.disk-low", None, place="/", free_bytes=1), "The disk is nearly full"),
        (event("helper.crashed", None, report="/r"), "vmgr's helper crashed and was started again"),
        (event("port.failed", port=80, problem="taken"), "Port 80 of web is not reached"),
        (event("machine.exited", cause="failed", reason="gone"), None),  # there is none such
        (event("machine.exited", "\n", cause="panic"), None),
        (event("machine.status", before="running", after="stopped"), None),
    ],
)  # fmt: skip
async def test_what_is_worth_a_notification(tmp_path: Path, what: Event, title: str | None) -> None:
    helper = a_helper(tmp_path)
    made = notification_of(helper, what)
    assert (None if made is None else made.title) == title
    close(helper)


async def test_a_disk_that_fills_up_is_told_once(tmp_path: Path) -> None:
    helper = a_helper(tmp_path)
    watch = DiskWatch(helper)
    told: list[str] = []
    large, small = 100 << 30, 4 << 30
    looks = [
        (3 << 30, large), (1 << 30, large), (1 << 30, large), (3 << 30, large), (1 << 30, large),
        (5 << 30, large), (1 << 30, large), (1 << 30, small), (100 << 20, small),
    ]  # fmt: skip
    for free, size in looks:
        before = len(helper.events._kept)
        watch._judge(tmp_path, 1 if size == large else 2, free, size)
        told.append("told" if len(helper.events._kept) > before else "")
    assert told == ["", "told", "", "", "", "", "told", "", "told"]
    close(helper)


@needs_bus
@pytest.mark.vm
async def test_a_crash_is_shown_with_its_log(quick_home: Home) -> None:
    home = quick_home
    daemon = Daemon(home.root / "run/bus")
    try:
        async with Desktop(daemon) as desktop:
            await asyncio.to_thread(home.vmgr, "create", "web", *SMALL, "--image", "debian-minimal")
            await asyncio.to_thread(home.vmgr, "start", "web")
            pid = await asyncio.to_thread(home.helper_pid)
            assert await desktop.owner(APP_ID) == pid, "process rule 10"
            (vmm,) = home.vmms()
            os.kill(vmm, signal.SIGKILL)
            shown = await desktop.next()
            assert shown["title"] == "web has crashed"
            assert shown["actions"] == ["0", "Show log"]
            desktop.choose(shown["number"], "0")
            (file,) = await asyncio.wait_for(desktop.files.get(), 60)
            assert file.startswith("file:///")
            assert file.endswith("/vmm.log")
    finally:
        daemon.kill()
    # The bus has died, and the helper has not noticed.
    assert await asyncio.to_thread(home.helper_pid) == pid
    audit = await asyncio.to_thread(home.vmgr, "doctor", "--audit")
    assert audit.returncode == 0
