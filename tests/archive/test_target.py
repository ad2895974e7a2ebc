"""Files appear whole, never over another one unless told."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from vmgr.archive.target import NewFile
from vmgr.errors import ConflictError

if TYPE_CHECKING:
    from pathlib import Path


def without_o_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has no files without names: it takes that for a directory."""
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        without_o_tmpfile(monkeypatch)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("replace", [True, False])
def test_a_new_one(tmp_path: Path, *, replace: bool) -> None:
    with NewFile(tmp_path / "file", replace=replace) as file:
        os.write(file.fd, b"content")
        assert not (tmp_path / "file").exists()
        assert file.show() == 7
    assert (tmp_path / "file").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("either")
def test_one_that_came_meanwhile_stays(tmp_path: Path) -> None:
    with NewFile(tmp_path / "file", replace=False) as file:
        (tmp_path / "file").write_bytes(b"mine")
        with pytest.raises(ConflictError, match="there is a file"):
            file.show()
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("either")
def test_one_is_replaced_when_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with NewFile(tmp_path / "file", replace=True) as file:
        os.write(file.fd, b"new")
        assert (tmp_path / "file").read_bytes() == b"mine"
        file.show()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("either")
def test_one_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with NewFile(tmp_path / "file", replace=False) as file:
        os.write(file.fd, b"half")
    assert list(tmp_path.iterdir()) == []
