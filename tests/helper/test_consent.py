"""What the person has to agree to, at real terminals and without one."""

from __future__ import annotations

import os
import pty
import pwd
import select
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = (*SMALL, "--image", "debian-minimal")


@pytest.fixture(scope="module")
def asking(module_home: Home) -> Home:
    """A home whose person is asked, with a stopped machine `m`."""
    for key in ("shares", "ports"):
        module_home.vmgr("config", "set", f"authorize.{key}", "ask")
    module_home.vmgr("create", *IMAGE, "m")
    return module_home


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert not tmp_path.resolve().is_relative_to(home.resolve()), "the test's files are in a home"
    return tmp_path


def at_a_terminal(home: Home, answer: bytes, *command: str) -> tuple[int, str]:
    """Exit code and all that was said, where `answer` is typed when asked."""
    ours, theirs = pty.openpty()
    try:
        process = home.start(*command, stdin=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        said = b""
        while not said.rstrip().endswith(b"[y/N]"):
            assert select.select([ours], [], [], 60)[0], said
            said += os.read(ours, 4096)
        os.write(ours, answer)
        output, _ = process.communicate(timeout=60)
        return process.returncode, said.decode() + output.decode()
    finally:
        os.close(ours)


def shares(home: Home) -> list[str]:
    return [share["host"] for share in home.json("share", "ls", "m")]


def test_what_is_outside_the_home_is_asked_about(asking: Home, outside: Path) -> None:
    code, said = at_a_terminal(asking, b"n\n", "share", "add", "m", f"{outside}:/mnt/a")
    assert code == 1
    assert f"{outside} is outside your home; may machine m read and change what is in it?" in said
    assert shares(asking) == []
    code, said = at_a_terminal(asking, b"y\n", "share", "add", "m", f"{outside}:/mnt/a:ro")
    assert (code, "may machine m read what is in it?" in said) == (0, True)
    assert shares(asking) == [str(outside)]
    asking.vmgr("share", "rm", "m", "/mnt/a")


def test_nobody_is_there_to_be_asked(asking: Home, outside: Path) -> None:
    for command in (
        ("share", "add", "m", str(outside)),
        ("create", *IMAGE, "n", "--share", str(outside)),
        ("run", *SMALL, "--share", str(outside), "debian-minimal", "--", "true"),
        ("create", *IMAGE, "n", "-p", "0.0.0.0:8099:80"),
        ("port", "add", "m", "0.0.0.0:8099:80"),
    ):
        done = asking.vmgr(*command, check=False)
        assert done.returncode in {1, 125}
        assert b"nobody was there to be asked" in done.stderr
        assert b"--yes" in done.stderr
    assert [machine["name"] for machine in asking.json("ls")] == ["m"]
    assert (shares(asking), asking.json("port", "ls", "m")) == ([], [])


def test_what_cannot_be_is_not_asked_about(asking: Home, outside: Path) -> None:
    for command in (
        ("share", "add", "m", str(outside / "gone")),
        ("run", *SMALL, "--share", str(outside / "gone"), "debian-minimal", "--", "true"),
    ):
        done = asking.vmgr(*command, check=False)
        assert b"cannot be shared: No such file or directory" in done.stderr


def test_yes_beforehand(asking: Home, outside: Path) -> None:
    asking.vmgr("create", *IMAGE, "n", "--yes", "--share", str(outside), "-p", "0.0.0.0:8099:80")
    asking.vmgr("rm", "n")
    asking.vmgr("port", "add", "--yes", "m", "0.0.0.0:8099:80")
    asking.vmgr("port", "rm", "m", "0.0.0.0:8099:80")


def test_what_needs_no_question(asking: Home, within: Path) -> None:
    asking.vmgr("share", "add", "m", f"{within}:/mnt/b")
    asking.vmgr("share", "rm", "m", "/mnt/b")
    asking.vmgr("port", "add", "m", "8099:80")
    asking.vmgr("port", "rm", "m", "8099:80")


def test_a_link_out_of_the_home_is_outside(asking: Home, outside: Path, within: Path) -> None:
    (within / "link").symlink_to(outside)
    done = asking.vmgr("share", "add", "m", f"{within / 'link'}:/mnt/c", check=False)
    assert (done.returncode, b"is outside your home" in done.stderr) == (1, True)


@pytest.fixture
def within() -> Iterator[Path]:
    """A directory in the person's home."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=pwd.getpwuid(os.getuid()).pw_dir) as made:
        yield Path(made)
