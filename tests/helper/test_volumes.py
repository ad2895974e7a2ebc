"""Volumes in machines: there before the first command, never written to by two, never lost."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, kill_and_wait
from tests.helper.locks import is_locked
from tests.helper.test_fork import shell

from vmgr.volume import open_volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Home

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def home(quick_module_home: Home) -> Iterator[Home]:
    """A home in which machines start from a template; `web` runs and writes to volume `data`."""
    made = quick_module_home
    volumes = made.data / "vmgr/volumes"
    try:
        assert made.vmgr("volume", "create", "data", "--size", "100M").stdout == b"data\n"
        made.vmgr(
            "create", *SMALL, "--image", "debian-minimal", "--volume", "data:/srv/data", "--start",
            "web",
        )  # fmt: skip
        yield made
        for machine in made.vmgr("ls", "-q").stdout.decode().split():
            made.vmgr("rm", "-f", machine)
        names = made.vmgr("volume", "ls", "-q").stdout.decode().split()
        made.vmgr("volume", "rm", *names)
        assert list(volumes.iterdir()) == []
    finally:
        shutil.rmtree(volumes, ignore_errors=True)


@pytest.fixture
def web(home: Home) -> Home:
    """The same; `web` runs, however the test before ended."""
    home.vmgr("start", "web")
    return home


def refused(home: Home, *arguments: str) -> str:
    """The words with which something is refused."""
    done = home.vmgr(*arguments, check=False)
    assert done.returncode in {1, 2}
    assert b"\nTry: " in done.stderr
    return done.stderr.decode()


def test_it_is_there_from_the_first_command_on(web: Home) -> None:
    assert web.json("info", "web")["started_from"] == "template"
    (mounted,) = shell(web, "web", "grep /srv/data /proc/mounts")
    assert mounted.split()[2:4] == ["ext4", "rw,noatime,discard,noinit_itable"]
    assert shell(web, "web", "ls -a /srv/data") == [".", ".."]
    (volume,) = web.json("volume", "ls")
    assert (volume["name"], volume["size_bytes"]) == ("data", 100 << 20)
    use = {"machine": "web", "status": "running", "path": "/srv/data", "read_only": False}
    assert volume["machines"] == [use]
    assert "Volume:           data at /srv/data" in web.vmgr("info", "web").stdout.decode()


def test_one_machine_at_a_time_writes(web: Home) -> None:
    shell(web, "web", "echo of web > /srv/data/file")
    web.vmgr("create", *SMALL, "--image", "debian-minimal", "--volume", "data:/d:ro", "two")
    said = refused(web, "start", "two")
    assert "machine web (running) writes to volume data, so machine two cannot read it" in said
    web.vmgr("stop", "web")
    # Stopped in an orderly way it is clean.
    web.vmgr("start", "two")
    assert shell(web, "two", "cat /d/file; touch /d/new 2>&1 | tail -c 22; test ! -e /d/new") == [
        "of web", "Read-only file system",
    ]  # fmt: skip
    assert "machine two (running) reads volume data" in refused(web, "start", "web")
    # Copies of who only reads may read as well.
    web.vmgr("fork", "two", "three")
    assert shell(web, "three", "cat /d/file") == ["of web"]
    web.vmgr("rm", "-f", "two", "three")


def test_a_snapshot_of_one_that_is_stopped_is_without_it(home: Home) -> None:
    home.vmgr("snapshot", "create", "web", "stopped")  # as the test before has left it
    home.vmgr("create", "--from", "web:stopped", "copy")
    assert home.json("info", "copy")["volumes"] == []
    home.vmgr("snapshot", "rm", "web:stopped")
    home.vmgr("rm", "copy")


def test_data_of_a_run_is_on_the_volume_when_it_has_ended(home: Home) -> None:
    run = ("run", *SMALL, "-q", "--volume")
    script = "echo kept > /d/run; exec sleep 1000 & exit 0"
    home.vmgr(*run, "data:/d", "debian-minimal", "--", "sh", "-c", script)
    read = home.vmgr(*run, "data:/d:ro", "debian-minimal", "--", "cat", "/d/run")
    assert read.stdout == b"kept\n"


def test_coming_growing_and_going_while_it_runs(web: Home) -> None:
    assert web.vmgr("volume", "create", "more", "--size", "32M").stdout == b"more\n"
    attached = web.vmgr("volume", "attach", "web", "more:/srv/data/more")
    assert attached.stdout == b"more is at web:/srv/data/more\n"
    shell(web, "web", "echo more > /srv/data/more/file")
    assert "has volume more already" in refused(web, "volume", "attach", "web", "more:/x")
    web.vmgr("volume", "resize", "more", "200M")
    (blocks,) = shell(web, "web", "df -m /srv/data/more | tail -1 | tr -s ' ' | cut -d' ' -f2")
    assert 150 < int(blocks) <= 200
    assert "volumes only grow" in refused(web, "volume", "resize", "more", "100M")
    assert "belongs to machine web" in refused(web, "volume", "rm", "more")
    # Space comes back.
    shell(web, "web", "head -c 40M /dev/urandom > /srv/data/more/big; sync")
    full = next(v for v in web.json("volume", "ls") if v["name"] == "more")["used_bytes"]
    assert full > 40 << 20
    shell(web, "web", "rm /srv/data/more/big; sync; fstrim /srv/data/more")
    assert next(v for v in web.json("volume", "ls") if v["name"] == "more")["used_bytes"] < full / 4
    web.vmgr("exec", "-d", "web", "--", "sh", "-c", "cd /srv/data/more; exec sleep 1000")
    shell(web, "web", "until fuser /srv/data/more || pgrep -x sleep; do :; done >/dev/null 2>&1")
    said = refused(web, "volume", "detach", "web", "more")
    assert "something in machine web uses volume more at /srv/data/more" in said
    assert shell(web, "web", "cat /srv/data/more/file; pkill -x sleep") == ["more"]
    assert web.vmgr("volume", "detach", "web", "more").stdout == b"web is without more\n"
    assert shell(web, "web", "ls /srv/data/more; ls -d /sys/block/vd*") == [
        "/sys/block/vda", "/sys/block/vdb", "/sys/block/vdc",
    ]  # fmt: skip
    assert web.vmgr("volume", "rm", "more").stdout.startswith(b"removed more (")


def test_suspended_it_stays_as_it_is(web: Home) -> None:
    shell(web, "web", "echo in memory > /srv/data/late")
    web.vmgr("exec", "-d", "web", "--", "sh", "-c", "exec sleep 1000 < /srv/data/late")
    web.vmgr("suspend", "web")
    for arguments in (("detach", "web", "data"), ("resize", "data", "1G")):
        assert "machine web is suspended" in refused(web, "volume", *arguments)
    web.vmgr("create", *SMALL, "--image", "debian-minimal", "--volume", "data", "two")
    assert "machine web (suspended) writes to volume data" in refused(web, "start", "two")
    web.vmgr("rm", "two")
    web.vmgr("resume", "web")
    assert shell(web, "web", "cat /srv/data/late; pgrep -xc sleep; pkill -x sleep") == [
        "in memory", "1",
    ]  # fmt: skip


def test_what_was_saved_is_not_met_with_a_changed_volume(web: Home) -> None:
    web.vmgr("suspend", "web")
    disk = web.data / "vmgr/volumes/data/disk.ext4"
    os.utime(disk)
    done = web.vmgr("resume", "web")
    assert b"its volume data has changed since" in done.stderr + web.vmgr("ls").stderr
    assert web.json("info", "web")["started_from"] == "boot"
    assert shell(web, "web", "cat /srv/data/late") == ["in memory"]


def test_no_copy_is_made_of_who_writes(web: Home) -> None:
    said = refused(web, "fork", "web")
    assert "machine web writes to volume data, which a copy of it cannot" in said
    said = refused(web, "snapshot", "create", "web", "now")
    assert "has volume data mounted" in said


def test_qemu_itself_keeps_a_second_vmm_off(web: Home) -> None:
    disk = web.data / "vmgr/volumes/data/disk.ext4"
    fd = open_volume(disk, read_only=False)
    try:
        assert is_locked(fd)
    finally:
        os.close(fd)


def test_a_new_helper_goes_on_with_it(web: Home) -> None:
    web.vmgr("volume", "create", "late", "--size", "16M")
    kill_and_wait(web.helper_pid())
    shell(web, "web", "echo again > /srv/data/again")
    assert web.vmgr("volume", "attach", "web", "late").stdout == b"late is at web:/mnt/late\n"
    web.kill_helper()
    assert shell(web, "web", "cat /srv/data/again; touch /mnt/late/x; ls /mnt/late") == [
        "again", "x",
    ]  # fmt: skip
    web.vmgr("volume", "detach", "web", "late")


def test_a_killed_machine_loses_nothing_that_was_synced(web: Home) -> None:
    shell(web, "web", "echo synced > /srv/data/synced; sync")
    web.vmgr("kill", "web")
    web.vmgr("create", *SMALL, "--image", "debian-minimal", "--volume", "data:/d:ro", "two")
    assert "was not left clean" in refused(web, "start", "two")
    web.vmgr("rm", "two")
    web.vmgr("start", "web")
    assert shell(web, "web", "cat /srv/data/synced") == ["synced"]


def test_a_volume_that_has_gone_is_told(web: Home) -> None:
    web.vmgr("volume", "create", "gone", "--size", "16M")
    web.vmgr("create", *SMALL, "--image", "debian-minimal", "--volume", "gone", "two")
    shutil.rmtree(web.data / "vmgr/volumes/gone")
    assert "volume gone of machine two has gone" in refused(web, "start", "two")
    web.vmgr("volume", "detach", "two", "gone")
    web.vmgr("rm", "two")


def test_what_cannot_be(web: Home) -> None:
    for text, words in (
        ("nope", "there is no volume named nope"),
        ("data:/proc/x", "is the kernel's"),
        ("data:x", "is not a volume like"),
        (":/x", "is not a volume like"),
    ):
        assert words in refused(web, "create", "--volume", text, "x")
    assert "cannot be a volume's name" in refused(web, "volume", "create", "A")
    assert "there is a volume named data already" in refused(web, "volume", "create", "data")
    assert "machine web has no volume x" in refused(web, "volume", "detach", "web", "x")
