"""Suspended machines go on where they stood, whatever went wrong meanwhile; else they boot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, kill_and_wait
from tests.helper.test_fork import shell
from tests.helper.test_reconcile import edit_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Home

pytestmark = pytest.mark.vm

# In memory only: a machine that boots has none.
COUNTER = "n=0; while sleep 0.2; do echo $((n += 1)) > /run/new; mv /run/new /run/counter; done"
GROWS = "a=$(cat /run/counter); until [ $(cat /run/counter) -gt $a ]; do sleep 0.1; done; echo yes"
DISK = "cat /etc/kept; cat /run/counter || echo gone"


@pytest.fixture(scope="module")
def web(module_home: Home) -> Iterator[Home]:
    """A home with a machine `web`."""
    home = module_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "web")
    home.vmgr("start", "web")
    shell(home, "web", "echo disk > /etc/kept")
    yield home
    home.vmgr("rm", "-f", "web")


@pytest.fixture
def counting(web: Home) -> Home:
    """The same; `web` runs, and counts."""
    web.vmgr("start", "web")
    if shell(web, "web", "cat /run/counter || true") == []:
        web.vmgr("exec", "-d", "web", "--", "sh", "-c", COUNTER)
        shell(web, "web", "until [ -s /run/counter ]; do sleep 0.1; done")
    return web


def directory(home: Home) -> Path:
    (found,) = (home.root / "state/vmgr/machines").iterdir()
    return found


def nothing_saved(home: Home) -> None:
    """Of a machine that runs or is stopped nothing saved is left."""
    until(lambda: not (directory(home) / "saved").exists())  # removed after it has gone on
    assert not list(directory(home).glob(".saved*"))


def until(done: Callable[[], bool]) -> None:
    """Ask until it is so: what is asked has no event that a test could wait for."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline


def goes_on(home: Home) -> None:
    """`web` is what it was, with what ran in it."""
    assert shell(home, "web", GROWS) == ["yes"]
    assert len(home.vmms()) == 1
    assert home.vmgr("ls").stderr == b""
    nothing_saved(home)


def started_anew(home: Home, why: str) -> None:
    """`web` boots from its disk, and says once what is lost."""
    done = home.vmgr("resume", "web")
    assert done.stderr.decode() == (
        f"vmgr: machine web was started anew: {why}; its disk is as it was, "
        "what ran in it is lost\n"
    )
    assert home.vmgr("ls").stderr == b""
    assert home.json("info", "web")["started_from"] == "boot"
    assert shell(home, "web", DISK) == ["disk", "gone"]
    nothing_saved(home)


# -- as it should be -------------------------------------------------------------------------------


def test_it_goes_on_where_it_stood(counting: Home) -> None:
    home = counting
    before = home.json("info", "web")
    at = int(shell(home, "web", "cat /run/counter")[0])
    assert home.vmgr("suspend", "web").stdout == b"web\n"
    info = home.json("info", "web")
    assert (info["status"], info["vmm"]) == ("suspended", None)
    assert home.vmms() == []
    assert home.vmgr("suspend", "web").returncode == 0  # it is
    # By itself, when it is used; by many at once, once.
    users = [home.start("exec", "web", "--", "cat", "/run/counter") for _ in range(4)]
    ends = [user.communicate(timeout=60) for user in users]
    assert all(at <= int(out) < at + 50 for out, _ in ends), ends
    after = home.json("info", "web")
    assert after["boot_id"] == before["boot_id"]
    assert after["network"] == before["network"]
    goes_on(home)


def test_the_clock_is_the_hosts_when_it_goes_on(counting: Home) -> None:
    """As if the host's clock had been changed meanwhile: the machine had another."""
    home = counting
    for wrong in ("2001-01-01", "2100-01-01"):
        shell(home, "web", f"date -s {wrong}")
        home.vmgr("suspend", "web")
        (now,) = shell(home, "web", "date +%s")
        assert abs(int(now) - time.time()) < 60
    # What sleeps is not woken late by a clock that was set back.
    goes_on(home)


def test_a_command_that_comes_while_it_is_being_suspended(counting: Home) -> None:
    home = counting
    suspending = home.start("suspend", "web")
    users = [home.start("exec", "web", "--", "cat", "/etc/kept") for _ in range(6)]
    for user in users:
        out, errors = user.communicate(timeout=60)
        assert (user.returncode, out) == (0, b"disk\n"), errors
    suspending.communicate(timeout=60)
    goes_on(home)


# -- other commands --------------------------------------------------------------------------------


def test_what_can_be_done_with_a_suspended_machine(counting: Home) -> None:
    home = counting
    home.vmgr("suspend", "web")
    refused = home.vmgr("rm", "web", check=False)
    assert refused.returncode == 1
    assert b"machine web is suspended, so it cannot be removed" in refused.stderr
    assert b"vmgr rm -f web" in refused.stderr
    # Started cold: what ran is given up, as was asked for, so nothing needs to be told.
    cold = home.vmgr("start", "--cold", "web")
    assert cold.stderr == b""
    assert shell(home, "web", DISK) == ["disk", "gone"]
    nothing_saved(home)
    # Stopped: it goes on first, so that nothing is lost that is not on the disk yet.
    shell(home, "web", "echo late > /etc/late")
    home.vmgr("suspend", "web")
    home.vmgr("stop", "web")
    assert home.json("info", "web")["status"] == "stopped"
    nothing_saved(home)
    home.vmgr("start", "web")
    assert shell(home, "web", "cat /etc/late") == ["late"]
    home.vmgr("suspend", "web")
    home.vmgr("kill", "web")
    info = home.json("info", "web")
    assert (info["status"], info["status_reason"]) == ("stopped", "killed by vmgr kill")
    nothing_saved(home)
    refused = home.vmgr("resume", "web", check=False)
    assert b"machine web is stopped, so there is nothing to go on with" in refused.stderr


def test_restarting_and_removing_a_suspended_machine(web: Home) -> None:
    home = web
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "--start", "other")
    boot = home.json("info", "other")["boot_id"]
    home.vmgr("suspend", "other")
    home.vmgr("restart", "other")
    info = home.json("info", "other")
    assert (info["status"], info["boot_id"] != boot) == ("running", True)
    home.vmgr("suspend", "other")
    home.vmgr("rm", "-f", "other")
    assert [machine["name"] for machine in home.json("ls")] == ["web"]
    assert len(list((home.root / "state/vmgr/machines").iterdir())) == 1


# -- faults ----------------------------------------------------------------------------------------


def stages(home: Home) -> dict[str, Callable[[], bool]]:
    """What can be seen from outside of how far a suspend is."""
    there = directory(home)
    stage, whole = there / ".saved-new", there / "saved"
    return {
        "begun": stage.exists,
        "memory": lambda: (stage / "memory").exists() and (stage / "memory").stat().st_blocks > 0,
        "devices": lambda: (stage / "devices").exists() and (stage / "devices").stat().st_size > 0,
        "written": lambda: (stage / "saved.json").exists() or whole.exists(),
        "published": whole.exists,
        "ended": lambda: whole.exists() and not home.vmms(),
    }


@pytest.mark.parametrize("victim", ["helper", "vmm"])
def test_killed_while_it_is_suspended(counting: Home, victim: str) -> None:
    """At every stage: it goes on, or it is suspended; only without its VMM it is stopped."""
    home = counting
    for name, reached in stages(home).items():
        home.vmgr("start", "web")
        if shell(home, "web", "cat /run/counter || true") == []:
            home.vmgr("exec", "-d", "web", "--", "sh", "-c", COUNTER)
            shell(home, "web", "until [ -s /run/counter ]; do sleep 0.1; done")
        nothing_saved(home)
        pid = home.helper_pid()
        (vmm,) = home.vmms()
        client = home.start("suspend", "web")
        until(lambda: reached() or client.poll() is not None)  # noqa: B023 (called in this round)
        kill_and_wait(pid if victim == "helper" else vmm)
        _, errors = client.communicate(timeout=60)
        assert b"Traceback" not in errors, name
        status = home.json("info", "web")["status"]
        if victim == "helper":
            assert status in {"running", "suspended"}, (name, status, home.logs())
            goes_on(home)
        else:
            assert status in {"stopped", "suspended"}, (name, status, home.logs())
            assert home.vmms() == []
            if status == "suspended":
                goes_on(home)
            else:
                nothing_saved(home)


@pytest.mark.parametrize("victim", ["helper", "vmm"])
def test_killed_while_it_goes_on(counting: Home, victim: str) -> None:
    home = counting
    home.vmgr("suspend", "web")
    pid = home.helper_pid()
    client = home.start("resume", "web")
    until(lambda: bool(home.vmms()) or client.poll() is not None)
    kill_and_wait(pid if victim == "helper" else home.vmms()[0])
    _, errors = client.communicate(timeout=60)
    assert b"Traceback" not in errors
    # Without its helper it goes on, or is suspended still; without its VMM it boots and says so.
    if victim == "helper":
        goes_on(home)
    else:
        assert shell(home, "web", "cat /etc/kept") == ["disk"]
        home.vmgr("ls")
        nothing_saved(home)


def test_no_space_to_suspend(counting: Home) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    home = counting
    stage = directory(home) / ".saved-new"
    stage.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", stage], check=True)
    try:
        done = home.vmgr("suspend", "web", check=False)
    finally:
        subprocess.run(["umount", stage], check=True)
    assert done.returncode == 1
    assert b"no space left to " in done.stderr
    assert home.json("info", "web")["status"] == "running"
    goes_on(home)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        at = os.lseek(file.fileno(), 0, os.SEEK_DATA) + 1000
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_what_was_saved_is_damaged(counting: Home) -> None:
    home = counting
    saved = directory(home) / "saved"
    damages: dict[str, Callable[[], object]] = {
        "its saved memory is damaged": lambda: flip(saved / "memory"),
        "its saved memory is missing": lambda: shutil.rmtree(saved),
        "its disk has changed since": lambda: os.utime(directory(home) / "disk.qcow2"),
    }
    for why, damage in damages.items():
        home.vmgr("suspend", "web")
        damage()
        started_anew(home, why)


@pytest.mark.parametrize(
    ("damage", "why"),
    [("memory", "cut short"), ("devices", "the saved state of its devices is damaged"),
     ("saved.json", "the record of its saved memory is damaged")],
)  # fmt: skip
def test_what_was_saved_is_cut_short(counting: Home, damage: str, why: str) -> None:
    home = counting
    home.vmgr("suspend", "web")
    file = directory(home) / "saved" / damage
    os.truncate(file, file.stat().st_size // 2)
    started_anew(home, why)


def test_a_host_that_restarts_while_it_is_suspended(counting: Home) -> None:
    home = counting
    home.vmgr("suspend", "web")
    home.kill_helper()
    shutil.rmtree(home.root / "run/vmgr")  # as a new boot of the host finds it
    goes_on(home)
    # Not so while it was being suspended and nothing was whole yet.
    home.kill_helper()
    for pid in home.vmms():
        kill_and_wait(pid)
    edit_rows(home, '"status":"running"', '"status":"suspending"')
    (directory(home) / ".saved-new").mkdir()
    info = home.json("info", "web")
    assert (info["status"], info["status_reason"]) == ("stopped", "its VMM ended unobserved")
    nothing_saved(home)
    assert json.loads(home.vmgr("ls", "--json").stdout)[0]["name"] == "web"
