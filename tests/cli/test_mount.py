"""A real machine's files, mounted on this computer with sshfs."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home, kill_and_wait

from vmgr.cli.mounts import Mount, mounts, source

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_sshfs = pytest.mark.skipif(
    not (shutil.which("sshfs") and os.access("/dev/fuse", os.R_OK | os.W_OK)),
    reason="needs sshfs, and /dev/fuse open to this user",
)


def test_mounts_are_read_from_the_kernels_table() -> None:
    uid = os.getuid()
    name = source("web", "/a b:c,\n%").encode()
    line = (
        b"40 29 0:50 / /home/me/a\\040dir rw,nosuid,nodev,relatime shared:1 - fuse.sshfs %s "
        b"rw,user_id=%d,group_id=1\n"
    )
    table = line % (name, uid) + line % (b"host:/", uid) + line % (name, uid + 1)
    table += (line % (name, uid)).replace(b"/ /home", b"/ /srv").replace(b" rw,nosuid", b" ro")
    assert mounts(table) == [
        Mount("web", "/a b:c,\n%", "/home/me/a dir", read_only=False),
        Mount("web", "/a b:c,\n%", "/srv/me/a dir", read_only=True),
    ]


@pytest.fixture(scope="module")
def home(quick_module_home: Home) -> Iterator[Home]:
    """A home with a machine `web` that has a file and links."""
    quick_module_home.vmgr("create", *SMALL, "--image", "debian-minimal", "--start", "web")
    script = (
        "mkdir /srv/d; echo there >/srv/d/file; echo of the machine >/etc/mark; "
        "ln -s /etc/mark /srv/d/absolute; ln -s ../../etc/mark /srv/d/relative"
    )
    quick_module_home.vmgr("exec", "web", "--", "sh", "-c", script)
    yield quick_module_home
    for mount in mounts():
        if mount.directory.startswith(str(quick_module_home.root)):
            subprocess.run(["fusermount3", "-uz", mount.directory], check=False)


def ours(home: Home) -> list[Mount]:
    return [mount for mount in mounts() if mount.directory.startswith(str(home.root))]


def until_gone(home: Home) -> None:
    with Path("/proc/self/mounts").open() as table:
        changed = select.poll()
        changed.register(table, select.POLLPRI)  # see proc(5): it is another one
        while ours(home):
            assert changed.poll(60_000), "it is still mounted"


@pytest.mark.vm
@needs_sshfs
def test_files_are_read_and_written(home: Home) -> None:
    directory = Path(home.vmgr("mount", "web:/srv/d").stdout.decode().rstrip())
    assert directory == home.root / "home/vmgr/web"
    assert (directory / "file").read_text() == "there\n"
    assert (directory / "file").stat().st_uid == os.getuid()
    for link in ("absolute", "relative"):
        assert (directory / link).read_text() == "of the machine\n"
    (directory / "new").write_text("from here")
    assert home.vmgr("exec", "web", "--", "cat", "/srv/d/new").stdout == b"from here"
    # Once more is the same; something else there is not.
    assert home.vmgr("mount", "web:/srv/d").stdout.decode().rstrip() == str(directory)
    assert b"is mounted at" in home.vmgr("mount", "web", check=False).stderr
    (listed,) = [one for one in home.json("mount") if one["directory"] == str(directory)]
    assert (listed["machine"], listed["path"], listed["answers"]) == ("web", "/srv/d", True)
    with (directory / "file").open():
        busy = home.vmgr("umount", "web", check=False)
        assert (busy.returncode, b"a program uses" in busy.stderr) == (1, True)
        home.vmgr("umount", "--force", "web")
    assert ours(home) == []
    assert not directory.parent.exists()


@pytest.mark.vm
@needs_sshfs
def test_a_directory_of_ones_own_with_odd_letters(home: Home) -> None:
    directory = home.root / "a, dir=x"
    home.vmgr("mount", "--read-only", "web:/srv/d", str(directory))
    with pytest.raises(OSError, match="Read-only file system"):
        (directory / "new2").touch()
    assert b"is not empty" in home.vmgr("mount", "web", str(home.root), check=False).stderr
    home.vmgr("umount", str(directory))
    assert directory.exists(), "it is the person's"


@pytest.mark.vm
@needs_sshfs
def test_whoever_dies_leaves_nothing(home: Home) -> None:
    home.vmgr("mount", "web")
    for pid in home.processes("sshfs"):
        kill_and_wait(pid)
    home.vmgr("mount", "web")
    (mount,) = ours(home)
    assert mount.lives
    home.kill_helper()
    assert (Path(mount.directory) / "etc/mark").read_text() == "of the machine\n"
    home.vmgr("suspend", "web")
    until_gone(home)
    home.vmgr("mount", "web")  # wakes it
    home.vmgr("kill", "web")
    until_gone(home)
    stopped = home.vmgr("mount", "web", check=False)
    assert (stopped.returncode, b"vmgr start web" in stopped.stderr) == (1, True)


def test_what_cannot_be_mounted(bare: Home) -> None:
    for arguments, said in (
        (("mount", "nobody"), b"nobody"),
        (("mount", "/etc"), b"names no machine"),
        (("umount", "nobody"), b"nothing of a machine is mounted"),
    ):
        done = bare.vmgr(*arguments, check=False)
        assert done.returncode in {1, 2}
        assert said in done.stderr


@pytest.fixture
def bare(home: Home) -> Home:
    """The same, where nothing is mounted."""
    assert ours(home) == []
    return home
