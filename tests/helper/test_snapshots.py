"""Snapshots: a machine as it was, again and as another one."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, kill_and_wait
from tests.helper.test_fork import COUNTER, shell
from tests.helper.test_reconcile import edit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Home

pytestmark = pytest.mark.vm

GROWS = "a=$(cat /tmp/counter); until [ $(cat /tmp/counter) -gt $a ]; do sleep 0.1; done; echo yes"


@pytest.fixture(scope="module")
def taken(module_home: Home) -> Iterator[Home]:
    """A home with a machine `web`, and snapshots of it: `web:running` and `web:stopped`."""
    home = module_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "web")
    home.vmgr("start", "web")
    home.vmgr("exec", "-d", "web", "--", "sh", "-c", COUNTER)
    shell(home, "web", "echo running > /root/file; until [ -s /tmp/counter ]; do sleep 0.1; done")
    assert home.vmgr("snapshot", "create", "web", "running").stdout == b"web:running\n"
    # It goes on.
    assert shell(home, "web", GROWS) == ["yes"]
    shell(home, "web", "echo stopped > /root/file")
    home.vmgr("stop", "web")
    home.vmgr("snapshot", "create", "web", "stopped")
    yield home
    home.vmgr("snapshot", "rm", "web:running", "web:stopped")
    home.vmgr("rm", "-f", "web")
    assert list((home.data / "vmgr/snapshots").iterdir()) == []


def test_listing(taken: Home) -> None:
    running, stopped = taken.json("snapshot", "ls", "web")
    assert (running["name"], running["memory"]) == ("web:running", True)
    assert (stopped["name"], stopped["memory"]) == ("web:stopped", False)
    assert running["size_bytes"] > stopped["size_bytes"] > 0
    assert taken.json("snapshot", "ls", "other") == []
    table = taken.vmgr("snapshot", "ls").stdout.decode()
    assert "web:running" in table
    assert "memory and disk" in table


def test_restoring_gives_the_same_machine_back(taken: Home) -> None:
    home = taken
    before = home.json("info", "web")
    assert home.vmgr("snapshot", "restore", "web:running").stdout == b"web suspended\n"
    assert home.json("info", "web")["status"] == "suspended"
    # Its use lets it go on, as the machine it was.
    assert shell(home, "web", "cat /root/file; hostname") == ["running", "web"]
    assert shell(home, "web", GROWS) == ["yes"]
    after = home.json("info", "web")
    assert after["id"] == before["id"]
    for what in ("address", "address6", "mac", "name"):
        assert after["network"][what] == before["network"][what]
    refused = home.vmgr("snapshot", "restore", "web:stopped", check=False)
    assert refused.returncode == 1
    assert b"machine web is running, so it cannot be restored" in refused.stderr
    home.vmgr("snapshot", "restore", "-f", "web:stopped")
    assert home.json("info", "web")["status"] == "stopped"
    home.vmgr("start", "web")
    assert shell(home, "web", "cat /root/file; cat /tmp/counter || echo booted")[0] == "stopped"


def test_new_machines_from_a_snapshot_are_their_own(taken: Home) -> None:
    home = taken
    home.vmgr("create", "--from", "web:running", "one")
    home.vmgr("create", "--from", "web:stopped", "two")
    try:
        assert [home.json("info", n)["status"] for n in ("one", "two")] == ["suspended", "stopped"]
        home.vmgr("start", "one", "two")
        assert shell(home, "one", "hostname; cat /root/file") == ["one", "running"]
        assert shell(home, "one", GROWS) == ["yes"]
        assert shell(home, "two", "hostname; cat /root/file") == ["two", "stopped"]
        infos = [home.json("info", name) for name in ("web", "one", "two")]
        assert len({info["network"]["address"] for info in infos}) == 3
        assert len({info["network"]["mac"] for info in infos}) == 3
        assert len({info["id"] for info in infos}) == 3
        # A second one goes on from the same moment, and nothing that the first wrote is in it.
        shell(home, "one", "echo mine > /root/file; sync")
        home.vmgr("create", "--from", "web:running", "--start", "three")
        assert shell(home, "three", "cat /root/file") == ["running"]
    finally:
        home.vmgr("rm", "-f", "one", "two", "three", check=False)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("snapshot", "create", "web", "running"), "there is a snapshot web:running already", 1),
        (("snapshot", "create", "web", "a b"), "is not a tag for a snapshot", 2),
        (("snapshot", "create", "none"), "there is no machine named none", 1),
        (("snapshot", "restore", "web:none"), "there is no snapshot web:none", 1),
        (("snapshot", "restore", "web"), "does not name a snapshot", 2),
        (("snapshot", "rm", "web:none"), "there is no snapshot web:none", 1),
        (("create", "--from", "web:running", "web"), "there is a machine named web already", 1),
        (("create", "--from", "web:running", "--cpus", "2", "x"), "CPUs and memory stay", 2),
        (("create", "--from", "web:running", "--image", "debian", "x"), "that one's image", 2),
        (("create", "--from", "web:stopped", "--disk", "1G", "x"), "disk of the same size", 2),
    ],
)
def test_what_cannot_be(taken: Home, arguments: tuple[str, ...], message: str, code: int) -> None:
    before = taken.json("snapshot", "ls")
    done = taken.vmgr(*arguments, check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()
    assert taken.json("snapshot", "ls") == before
    assert [machine["name"] for machine in taken.json("ls")] == ["web"]


def test_an_image_that_a_snapshot_stands_on_stays(taken: Home) -> None:
    done = taken.vmgr("image", "rm", "debian-minimal", check=False)
    assert done.returncode == 1
    assert b"snapshot web:running" in done.stderr


def test_a_machine_that_is_gone_comes_back_as_a_new_one(taken: Home) -> None:
    home = taken
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "gone")
    home.vmgr("snapshot", "create", "gone", "kept")
    home.vmgr("rm", "gone")
    missing = home.vmgr("snapshot", "restore", "gone:kept", check=False)
    assert b"there is no machine named gone" in missing.stderr
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "gone")
    another = home.vmgr("snapshot", "restore", "gone:kept", check=False)
    assert b"gone:kept is of an earlier machine of that name" in another.stderr
    home.vmgr("rm", "gone")
    home.vmgr("create", "--from", "gone:kept", "gone")
    home.vmgr("rm", "gone")
    home.vmgr("snapshot", "rm", "gone:kept")


def test_what_a_helper_left_half_restored_is_restored(taken: Home) -> None:
    home = taken
    home.vmgr("snapshot", "restore", "-f", "web:running")
    (snapshot,) = [
        entry.name
        for entry in (home.data / "vmgr/snapshots").iterdir()
        if (entry / "memory").exists()
    ]
    home.kill_helper()
    edit_rows(home, '"status":"suspended"', '"status":"restoring"')
    edit_rows(home, '"restoring":null', f'"restoring":"{snapshot}"')
    (directory,) = (home.root / "state/vmgr/machines").iterdir()
    (directory / "disk.qcow2").unlink()
    assert shell(home, "web", "cat /root/file") == ["running"]
    home.vmgr("stop", "web")


def test_a_helper_killed_while_it_takes_one_leaves_none(taken: Home) -> None:
    home = taken
    home.vmgr("snapshot", "restore", "-f", "web:running")
    home.vmgr("resume", "web")
    before = home.json("snapshot", "ls")
    client = home.start("snapshot", "create", "web", "half")
    home.kill_helper()
    client.communicate(timeout=60)
    assert shell(home, "web", GROWS) == ["yes"]
    after = [s for s in home.json("snapshot", "ls") if s["tag"] != "half"]
    assert after == before
    assert not list((home.data / "vmgr/snapshots").glob(".new-*"))
    home.vmgr("snapshot", "rm", "web:half", check=False)
    home.vmgr("stop", "web")


def test_no_space_left_for_a_snapshot(taken: Home) -> None:
    home = taken
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    home.vmgr("snapshot", "restore", "-f", "web:running")
    home.vmgr("resume", "web")
    snapshots = home.data / "vmgr/snapshots"
    size = "size=4m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", snapshots], check=True)
    try:
        done = home.vmgr("snapshot", "create", "web", "full", check=False)
        assert list(snapshots.iterdir()) == []
    finally:
        subprocess.run(["umount", snapshots], check=True)
    assert done.returncode == 1
    assert b"no space left" in done.stderr.lower()
    # It goes on.
    assert shell(home, "web", GROWS) == ["yes"]
    assert len(home.json("snapshot", "ls", "web")) == 2
    home.vmgr("stop", "web")


def test_a_vmm_killed_while_its_machine_is_saved_leaves_no_snapshot(taken: Home) -> None:
    home = taken
    home.vmgr("snapshot", "restore", "-f", "web:running")
    home.vmgr("resume", "web")
    pid = home.json("info", "web")["vmm"]["pid"]
    client = home.start("snapshot", "create", "web", "half")
    kill_and_wait(pid)
    client.communicate(timeout=120)
    made = home.json("snapshot", "ls", "web")
    # Whichever was first: there is a whole one or none.
    assert len(made) == (3 if client.returncode == 0 else 2)
    home.vmgr("snapshot", "rm", "web:half", check=False)
    assert not list((home.data / "vmgr/snapshots").glob(".new-*"))
    assert home.json("info", "web")["status"] == "stopped"
