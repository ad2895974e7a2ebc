"""`vmgr ssh-config` and the person's own ~/.ssh/config."""

from __future__ import annotations

import os
import pty
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Home

THEIRS = b"# mine\r\nHost *\n\tUser \xff\n\nInclude other"  # no final newline, and no UTF-8


@pytest.fixture
def config(bare_home: Home) -> Path:
    return bare_home.root / "home/.ssh/config"


def line_of(home: Home) -> bytes:
    return f'Include "{home.root}/state/vmgr/ssh/config"\n'.encode()


def test_a_line_comes_and_goes_and_all_else_stays(bare_home: Home, config: Path) -> None:
    kept = bare_home.root / "dotfiles"
    kept.write_bytes(THEIRS)
    kept.chmod(0o640)
    config.parent.mkdir()
    config.symlink_to(kept)
    for _ in range(2):
        bare_home.vmgr("ssh-config", "--add")
        assert kept.read_bytes() == line_of(bare_home) + THEIRS
    assert config.is_symlink()
    assert kept.stat().st_mode & 0o777 == 0o640
    for _ in range(2):
        bare_home.vmgr("ssh-config", "--remove")
        assert kept.read_bytes() == THEIRS
    assert list(config.parent.iterdir()) == [config]


def test_without_an_answer_nothing_is_changed(bare_home: Home, config: Path) -> None:
    said = bare_home.vmgr("ssh-config").stdout
    assert line_of(bare_home) in said
    assert not config.exists()


@pytest.mark.parametrize(("answer", "added"), [(b"y\n", True), (b"\n", False), (b"\x04", False)])
def test_a_person_is_asked(bare_home: Home, config: Path, answer: bytes, added: bool) -> None:  # noqa: FBT001
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    subprocess.run(
        bare_home.command("ssh-config"), env=bare_home.environment, check=True, timeout=60,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert config.exists() == added
    if added:
        assert config.read_bytes() == line_of(bare_home)
        assert config.stat().st_mode & 0o777 == 0o600
        assert config.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_cannot_be_changed_is_said(bare_home: Home, config: Path) -> None:
    config.parent.write_text("in the way")
    done = bare_home.vmgr("ssh-config", "--add", check=False)
    assert done.returncode == 1
    assert b"put this line at its top yourself" in done.stderr


def test_what_is_printed_is_a_configuration(bare_home: Home) -> None:
    file = bare_home.root / "printed"
    file.write_bytes(bare_home.vmgr("ssh-config", "--print").stdout)
    argv = ["ssh", "-G", "-F", str(file), "web@vmgr"]
    shown = subprocess.run(argv, check=True, capture_output=True, env=bare_home.environment)
    values = dict(line.split(" ", 1) for line in shown.stdout.decode().splitlines() if " " in line)
    assert (values["hostname"], values["user"]) == ("127.0.0.1", "web")
    assert values["stricthostkeychecking"] == "true"
    assert (
        values["passwordauthentication"] == "no"
        or values["preferredauthentications"] == "publickey"
    )
