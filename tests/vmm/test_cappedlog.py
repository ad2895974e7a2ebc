import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmgr.vmm.cappedlog import CappedLog, read_tail, trim


def content(path: Path) -> bytes:
    older = path.with_name(f"{path.name}.1")
    return (older.read_bytes() if older.exists() else b"") + path.read_bytes()


def test_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in (b"one\n", b"two\n"):
        log = CappedLog(path)
        log.write(text)
        log.close()
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=40), st.integers(0, 40))
def test_two_files_of_at_most_the_cap_with_the_end_of_all(
    tmp_path: Path, chunks: list[bytes], reopen: int
) -> None:
    path = tmp_path / "log"
    for old in tmp_path.iterdir():
        old.unlink()
    log = CappedLog(path, cap=32)
    for i, chunk in enumerate(chunks):
        if i == reopen:
            log.close()
            log = CappedLog(path, cap=32)
        log.write(chunk)
        assert all(f.stat().st_size <= 32 for f in tmp_path.iterdir())
    log.close()
    if chunks:
        kept = b"".join(chunk[-32:] for chunk in chunks)
        assert kept.endswith(content(path))
        assert len(content(path)) >= min(len(kept), len(chunks[-1][-32:]))


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        CappedLog(tmp_path / "log").write(b"x")
    assert not (tmp_path / "precious").exists()


def test_trim_cuts_what_another_appends_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"a" * 10)
    assert not trim(path, cap=10)
    os.write(fd, b"b" * 5)
    assert trim(path, cap=10)
    os.write(fd, b"c")
    os.close(fd)
    assert path.read_bytes() == b"c"
    assert content(path) == b"a" * 5 + b"b" * 5 + b"c"


def test_the_tail_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "log", 10) == b""
    (tmp_path / "log").write_bytes(b"abc")
    assert read_tail(tmp_path / "log", 10) == b"abc"
    assert read_tail(tmp_path / "log", 2) == b"bc"
