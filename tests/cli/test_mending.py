"""Running the fixes that doctor names, at a real terminal and without one."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vmgr.api.models import Check
from vmgr.cli.mending import mend
from vmgr.doctor.host import Command, warning
from vmgr.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

MEND = """
import sys
from vmgr.cli.mending import mend
from vmgr.doctor.host import Command, good, warning
checks = [warning(name, "missing", Command(fix)) for name, fix in zip("abcd", sys.argv[1:])]
checks += [good("e", "there"), warning("f", "odd", "think about it")]
print(mend(checks, yes=False))
"""


def test_each_is_asked_about_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fixes = [f"touch {one}", f"touch {one}", "exit 3", f"touch {two}"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", MEND, *fixes],
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        for answer in (b"y\n", b"yes\n", b"\n"):
            seen = said.count(b"[y/N]")
            while said.count(b"[y/N]") == seen:
                assert select.select([ours], [], [], 60)[0], said
                said += os.read(ours, 4096)
            os.write(ours, answer)
        output, _ = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, output) == (0, b"True\n")
    assert b"that did not work" in said
    assert (one.exists(), two.exists()) == (True, False)
    assert b"think about it" not in said


def test_nobody_is_there_to_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _fd: False)
    checks = [warning("a", "missing", Command(f"touch {tmp_path / 'file'}"))]
    with pytest.raises(UsageError, match="nobody is there"):
        mend(checks, yes=False)
    assert not (tmp_path / "file").exists()
    assert mend(checks, yes=True)
    assert (tmp_path / "file").exists()


def test_what_is_no_command_is_left_to_the_person() -> None:
    good = Check(name="b", status="ok", summary="")
    assert not mend([warning("a", "odd", "log in again"), good], yes=True)
