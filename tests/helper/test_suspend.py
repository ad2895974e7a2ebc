"""Suspended machines go on where they stood, whatever went wrong meanwhile; else they boot."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
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
    kept = directory(home)  # removed after it has gone on
    until(lambda: not (kept / "saved").exists() and not list(kept.glob(".saved*")))


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
    said = home.vmgr("resume", "web").stderr.decode()
    assert said.startswith("vmgr: machine web was started anew: ")
    assert why in said
    assert said.endswith("; its disk is as it was, what ran in it is lost\n")
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
    before = home.last_event()
    suspending = home.start("suspend", "web")
    home.wait_for_event("machine.status", before, after="suspending")
    users = [home.start("exec", "web", "--", "cat", "/etc/kept") for _ in range(6)]
    for user in users:
        out, errors = user.communicate(timeout=60)
        assert (user.returncode, out) == (0, b"disk\n"), errors
    suspending.communicate(timeout=60)
    goes_on(home)


def test_a_command_that_runs_goes_on_with_its_machine(counting: Home) -> None:
    """Its client is told how to come back to it; nothing of what it says is lost."""
    home = counting
    script = "echo first; read line; echo $line; exit 7"
    user = home.start("exec", "web", "--", "sh", "-c", script)
    assert user.stdout is not None
    assert user.stdout.readline() == b"first\n"
    home.vmgr("suspend", "web")
    _, errors = user.communicate(timeout=60)
    (job,) = re.findall(rb"vmgr attach web (\d+)", errors)
    assert user.returncode == 125
    assert errors.startswith(b"vmgr: machine web was suspended, with the command in it.\n")
    back = home.vmgr("attach", "web", job.decode(), stdin=b"second\n", check=False)
    # What the first client had not yet acknowledged comes once more.
    assert (back.returncode, back.stdout) == (7, b"first\nsecond\n"), back.stderr
    goes_on(home)


def test_the_machine_of_a_run_is_not_suspended(quick_home: Home) -> None:
    home = quick_home
    run = home.start("run", *SMALL, "debian-minimal", "--", "sh", "-c", "echo up; cat")
    assert run.stdout is not None
    assert run.stdout.readline() == b"up\n"
    (machine,) = home.json("ls")
    refused = home.vmgr("suspend", machine["name"], check=False)
    assert refused.returncode == 1
    assert b"belongs to a `vmgr run`, so it cannot be suspended" in refused.stderr
    run.communicate(timeout=60)
    assert run.returncode == 0


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


def test_restarting_and_removing_a_suspended_machine(quick_home: Home) -> None:
    home = quick_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "--start", "other")
    boot = home.json("info", "other")["boot_id"]
    home.vmgr("suspend", "other")
    home.vmgr("restart", "other")
    info = home.json("info", "other")
    assert (info["status"], info["boot_id"] != boot) == ("running", True)
    home.vmgr("suspend", "other")
    home.vmgr("rm", "-f", "other")
    assert home.json("ls") == []
    assert home.machine_directories() == []
    assert home.vmms() == []


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
    }


def kill_while_suspending(home: Home, stage: str, victim: str) -> str:
    """End the helper or the VMM when a suspend has come so far; what the client said of it."""
    pid = home.helper_pid() if victim == "helper" else home.vmms()[0]
    reached = stages(home)[stage]
    client = home.start("suspend", "web")
    until(lambda: reached() or client.poll() is not None)
    kill_and_wait(pid)
    _, errors = client.communicate(timeout=60)
    assert b"Traceback" not in errors
    return errors.decode()


@pytest.mark.parametrize("stage", ["begun", "memory", "devices", "written", "published"])
def test_a_helper_killed_while_it_suspends(counting: Home, stage: str) -> None:
    """The machine goes on, or is suspended."""
    boot = counting.json("info", "web")["boot_id"]
    kill_while_suspending(counting, stage, "helper")
    goes_on(counting)
    info = counting.json("info", "web")
    assert (info["status"], info["boot_id"]) == ("running", boot)


@pytest.mark.parametrize("stage", ["devices", "published"])
def test_a_vmm_killed_while_it_is_suspended(counting: Home, stage: str) -> None:
    """The machine is suspended, or stopped with the reason."""
    home = counting
    said = kill_while_suspending(home, stage, "vmm")
    status = home.json("info", "web")["status"]
    assert home.vmms() == []
    if status == "suspended":
        goes_on(home)
    else:
        assert status == "stopped"
        assert said
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
    # Over its directory: its VMM has the disk open, and what is saved comes here.
    full = directory(home)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", full], check=True)
    try:
        done = home.vmgr("suspend", "web", check=False)
        assert list(full.glob(".saved*")) == []
    finally:
        subprocess.run(["umount", "--lazy", full], check=True)
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
    """Each kind of damage is a test of `vmgr.saved`; here what comes of one."""
    home = counting
    saved = directory(home) / "saved"
    home.vmgr("suspend", "web")
    flip(saved / "memory")
    started_anew(home, f"the saved memory {saved / 'memory'} is damaged")
    home.vmgr("suspend", "web")
    os.utime(directory(home) / "disk.qcow2")
    refused = home.vmgr("snapshot", "create", "web", check=False)
    assert b"had in memory does not go with its disk any more" in refused.stderr
    started_anew(home, "its disk has changed since")


def test_ports_that_are_asked_for_while_it_is_suspended(counting: Home) -> None:
    home = counting
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home.vmgr("suspend", "web")
    home.vmgr("port", "add", "web", f"{port}:80")
    since = home.last_event()
    with socket.create_connection(("127.0.0.1", port), timeout=60):
        home.wait_for_event("machine.status", since, after="running")
    home.vmgr("suspend", "web")
    home.vmgr("port", "rm", "web", f"{port}:80")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)
    goes_on(home)


def test_a_passing_problem_of_the_host_costs_nothing(counting: Home) -> None:
    """What runs in a machine is given up only where it cannot be had any more."""
    home = counting
    home.vmgr("suspend", "web")
    saved = directory(home) / "saved"
    for path in (saved / "memory", saved.parent / "vmm.log"):
        aside = path.with_name("aside")
        if path.exists():
            path.rename(aside)
        path.symlink_to(path.name)
        refused = home.vmgr("exec", "web", "--", "true", check=False)
        assert refused.returncode == 125
        assert home.json("info", "web")["status"] == "suspended"
        path.unlink()
        if aside.exists():
            aside.rename(path)
    refused_by = refused.stderr.decode()
    assert "vmm.log" in refused_by
    goes_on(home)


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
