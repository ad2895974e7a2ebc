"""Snapshots in one file: to another computer and back, and files that are not what they say."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home, kill_and_wait, short_directory
from tests.helper.test_fork import COUNTER, shell
from tests.helper.test_snapshots import GROWS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def exported(module_home: Home) -> Iterator[Home]:
    """A home without machines, with files of one that was: `running` and `lean`."""
    home = module_home
    home.vmgr("create", *SMALL, "--disk", "2G", "--image", "debian-minimal", "web")
    home.vmgr("start", "web")
    home.vmgr("exec", "-d", "web", "--", "sh", "-c", COUNTER)
    shell(home, "web", "echo old > /root/file; until [ -s /tmp/counter ]; do sleep 0.1; done")
    home.vmgr("snapshot", "create", "web", "running")
    done = home.vmgr("snapshot", "export", "web:running", "running")
    assert done.stdout.startswith(b"web:running is in running (")
    lean = home.json("snapshot", "export", "--without-image", "web:running", "lean")
    assert (lean["path"], lean["image"]) == (str(home.root / "lean"), False)
    home.vmgr("rm", "-f", "web")
    home.vmgr("snapshot", "rm", "web:running")
    yield home
    assert nothing_half_made(home) == []


@pytest.fixture
def elsewhere() -> Iterator[Home]:
    """Another computer: no images, no kernel, nothing."""
    root = short_directory()
    for name in ("data", "cache"):
        (root / name).mkdir(mode=0o700)
    home = Home(root, root / "data", root / "cache")
    yield home
    home.close()


def nothing_half_made(home: Home) -> list[Path]:
    """What is left of exports and imports that came to nothing."""
    places = (
        home.data / "vmgr/snapshots", home.data / "vmgr/images", home.cache / "vmgr/kernels",
    )  # fmt: skip
    residue = [entry for place in places for entry in place.glob(".new-*")]
    return residue + [e for e in home.root.iterdir() if e.is_file() and e.name.startswith(".")]


def refused(home: Home, *arguments: str, code: int = 1) -> str:
    """Run what must fail; gives what it said, one line that leaves nothing."""
    before = home.json("snapshot", "ls")
    done = home.vmgr(*arguments, check=False)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert home.json("snapshot", "ls") == before
    assert nothing_half_made(home) == []
    assert "Traceback" not in done.stderr.decode()
    (line,) = [line for line in done.stderr.decode().splitlines() if line.startswith("vmgr: ")]
    return line


def test_the_file_is_one_that_tar_knows(exported: Home) -> None:
    path = exported.root / "running"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size < 400 << 20
    command = ["tar", "--zstd", "-tf", path]
    names = subprocess.run(command, check=True, capture_output=True).stdout.decode().split()
    assert names == [
        "manifest.json", "snapshot.json", "disk.qcow2", "saved.json", "devices", "memory",
        "image.json", "root.ext4", "vmlinux", "initramfs.cpio", "modules.ext4", "bundle.json",
    ]  # fmt: skip


def test_what_is_exported_goes_on_on_another_computer(exported: Home, elsewhere: Home) -> None:
    file = str(exported.root / "running")
    lean = str(exported.root / "lean")
    home = elsewhere
    assert "was exported without its image" in refused(home, "snapshot", "import", lean)
    assert home.vmgr("snapshot", "import", file).stdout == b"web:running\n"
    assert "there is a snapshot web:running already" in refused(home, "snapshot", "import", file)
    # Image and kernel are here by now, and are not brought a second time.
    assert home.vmgr("snapshot", "import", lean, "lean:one").stdout == b"lean:one\n"
    first, second = home.json("snapshot", "ls")
    assert first["image_digest"] == second["image_digest"]
    assert first["memory"]
    (image,) = home.json("image", "ls")
    # It has no name: nobody takes it for the image that it was made from there.
    assert (image["names"], image["source"]) == ([], "snapshot:running")
    assert image["used_by"] == ["snapshot lean:one", "snapshot web:running"]
    home.vmgr("create", "--from", "web:running", "web")
    assert home.json("info", "web")["disk_bytes"] == 2 << 30
    assert "came from a file" in refused(home, "snapshot", "restore", "web:running")
    try:
        said = shell(home, "web", f"cat /root/file; hostname; {GROWS}")
        assert said == ["old", "web", "yes"], home.logs()
        assert home.json("info", "web")["started_from"] == "snapshot"
        # And it can go on from here to the next.
        home.vmgr("snapshot", "rm", "web:running", "lean:one")
        home.vmgr("kill", "web")
        home.vmgr("snapshot", "create", "web", "again")
        home.vmgr("snapshot", "export", "web:again", "again")
        home.vmgr("snapshot", "import", "again", "web:back")
        assert len({s["image_digest"] for s in home.json("snapshot", "ls")}) == 1
    finally:
        home.vmgr("rm", "-f", "web")


def test_back_where_it_came_from_it_stands_on_the_image_there(exported: Home) -> None:
    home = exported
    images = home.json("image", "ls")
    for file in ("running", "lean"):
        home.vmgr("snapshot", "import", file, f"{file}:back")
    digests = {s["image_digest"] for s in home.json("snapshot", "ls")}
    assert digests == {i["digest"] for i in images if i["names"] == ["debian-minimal"]}
    assert {i["digest"] for i in home.json("image", "ls")} == {i["digest"] for i in images}
    home.vmgr("snapshot", "rm", "running:back", "lean:back")


def test_a_file_that_is_there_stays_unless_told(exported: Home) -> None:
    home = exported
    home.vmgr("snapshot", "import", "lean", "kept:one")
    try:
        (home.root / "there").write_bytes(b"mine")
        export = ("snapshot", "export", "--without-image", "kept:one")
        assert "there is a file" in refused(home, *export, "there")
        assert (home.root / "there").read_bytes() == b"mine"
        home.vmgr(*export, "-f", "there")
        assert (home.root / "there").stat().st_size > 1_000
        assert stat.S_IMODE((home.root / "there").stat().st_mode) == 0o600
        assert "there is no directory" in refused(home, *export, "none/file")
        assert "is a directory" in refused(home, *export, "home", code=2)
        assert "no snapshot kept:two" in refused(home, "snapshot", "export", "kept:two", "new")
    finally:
        home.vmgr("snapshot", "rm", "kept:one")


def test_files_that_are_none(exported: Home) -> None:
    home = exported
    # What is wrong with an archive is told apart in tests/archive.
    (home.root / "text").write_bytes(b"hello\n" * 1_000)
    whole = (home.root / "lean").read_bytes()
    (home.root / "cut").write_bytes(whole[: len(whole) // 2])
    (home.root / "bit").write_bytes(flipped(whole))
    os.mkfifo(home.root / "fifo")
    for name, message in (
        ("text", "is not a snapshot that vmgr exported"),
        ("cut", "cut is damaged: it ends too early"),
        ("bit", "bit is damaged: "),
        ("fifo", "is not a regular file"),
    ):
        assert message in refused(home, "snapshot", "import", name, "x:y", code=2)
    assert "there is no file" in refused(home, "snapshot", "import", "none")
    assert "does not name a snapshot" in refused(home, "snapshot", "import", "lean", "x", code=2)


def flipped(content: bytes) -> bytes:
    """The same with one bit in the middle another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_killed_helper_leaves_nothing_of_an_import(exported: Home) -> None:
    home = exported
    before = home.json("snapshot", "ls")
    snapshots = home.data / "vmgr/snapshots"
    client = home.start("snapshot", "import", "running", "half:one")
    while not any(snapshots.glob(".new-*/files/memory")):
        assert client.poll() is None
    home.kill_helper()
    client.communicate(timeout=60)
    home.wait_for_no("vmgr.archive.porter")
    assert home.json("snapshot", "ls") == before
    assert nothing_half_made(home) == []


def test_a_killed_helper_leaves_nothing_of_an_export(exported: Home) -> None:
    home = exported
    home.vmgr("snapshot", "import", "lean", "half:two")
    snapshots = home.data / "vmgr/snapshots"
    client = home.start("snapshot", "export", "half:two", "half")
    while not any(snapshots.glob(".new-*")):
        assert client.poll() is None
    home.kill_helper()
    client.communicate(timeout=60)
    home.vmgr("snapshot", "rm", "half:two")
    assert not (home.root / "half").exists()
    assert nothing_half_made(home) == []


def test_a_client_that_goes_ends_the_work(exported: Home) -> None:
    home = exported
    snapshots = home.data / "vmgr/snapshots"
    client = home.start("snapshot", "import", "running", "half:three")
    while not any(snapshots.glob(".new-*/files/disk.qcow2")):
        assert client.poll() is None
    kill_and_wait(client.pid)
    client.communicate(timeout=60)
    home.wait_for_no("vmgr.archive.porter")
    # The next one waits for nothing of it.
    home.vmgr("snapshot", "import", "lean", "half:three")
    home.vmgr("snapshot", "rm", "half:three")
