from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from vmgr.cli.copy.extract import Extractor
from vmgr.cli.copy.tarreader import TarReader
from vmgr.errors import AgentError


def names(path: Path) -> list[str]:
    return sorted(inner.name for inner in path.iterdir())


def entry(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def extract(
    into: Path, *members: tuple[tarfile.TarInfo, bytes], as_name: str | None = None, cut: int = 0
) -> list[str]:
    """Extract and give the problems."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = io.BytesIO(out.getvalue()[: -cut or None])
    problems: list[str] = []
    before = len(names(Path("/proc/self/fd")))
    fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    try:
        Extractor(
            fd,
            rename_top=None if as_name is None else as_name.encode(),
            on_problem=problems.append,
        ).extract(TarReader(source.read))
    finally:
        os.close(fd)
        assert len(names(Path("/proc/self/fd"))) == before
    return problems


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("untouched")
    return tmp_path / "outside"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_tree_with_exact_modes_and_times(into: Path) -> None:
    at = 1_234_567_890
    problems = extract(
        into,
        directory("top", 0o555),
        entry(
            "top/file", b"content", mode=0o640, mtime=at, pax_headers={"mtime": f"{at}.000000005"}
        ),
        entry("top/closed", b"", mode=0o000),
        directory("top/empty", 0o700),
        symlink("top/link", "file"),
    )
    assert problems == []
    assert (into / "top/file").read_bytes() == b"content"
    assert (into / "top/file").stat().st_mtime_ns == at * 10**9 + 5
    assert [mode(into / p) for p in ("top", "top/file", "top/closed", "top/empty")] == [
        0o555, 0o640, 0o000, 0o700,
    ]  # fmt: skip
    assert (into / "top/link").readlink() == Path("file")
    (into / "top").chmod(0o755)


def test_modes_do_not_depend_on_the_umask(into: Path) -> None:
    before = os.umask(0o077)
    try:
        assert extract(into, directory("d", 0o775), entry("d/f", mode=0o666)) == []
    finally:
        os.umask(before)
    assert (mode(into / "d"), mode(into / "d/f")) == (0o775, 0o666)


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../up", "..", ".", "./", "a/.."])
def test_names_that_lead_out_are_left_out(into: Path, name: str) -> None:
    problems = extract(into, entry(name, b"evil"), entry("good", b"good"))
    assert len(problems) == 1
    assert names(into) == ["good"]
    assert names(into.parent) == ["into"]


def test_a_symlink_of_the_archive_is_not_followed(into: Path, outside: Path) -> None:
    problems = extract(
        into,
        symlink("way", str(outside)),
        entry("way/secret", b"evil"),
        entry("way/new", b"evil"),
        directory("way", 0o777),
        symlink("file", str(outside / "secret")),
        entry("file", b"mine"),
    )
    assert len(problems) == 3
    assert (outside / "secret").read_text() == "untouched"
    assert names(outside) == ["secret"]
    assert mode(outside) != 0o777
    assert (into / "file").read_bytes() == b"mine"
    assert not (into / "file").is_symlink()


def test_a_symlink_that_was_there_is_not_followed(into: Path, outside: Path) -> None:
    (into / "way").symlink_to(outside)
    problems = extract(into, entry("way/secret", b"evil"))
    assert len(problems) == 1
    assert (outside / "secret").read_text() == "untouched"


def test_a_file_that_is_linked_elsewhere_is_replaced_not_written(into: Path, outside: Path) -> None:
    os.link(outside / "secret", into / "file")
    assert extract(into, entry("file", b"new")) == []
    assert (into / "file").read_bytes() == b"new"
    assert (outside / "secret").read_text() == "untouched"


def test_hard_links_only_within_the_copy(into: Path) -> None:
    (into / "old").write_text("untouched")
    problems = extract(
        into,
        entry("a", b"shared"),
        hard_link("sub/b", "a"),
        hard_link("evil", "old"),
        hard_link("evil2", "../../etc/passwd"),
        symlink("s", "old"),
        hard_link("evil3", "s"),
    )
    assert len(problems) == 3
    assert (into / "a").stat().st_ino == (into / "sub/b").stat().st_ino
    assert names(into) == ["a", "old", "s", "sub"]


def test_a_hard_link_to_itself_or_over_its_twin_leaves_no_temporary_file(into: Path) -> None:
    extract(into, entry("a", b"x"), hard_link("b", "a"), hard_link("b", "a"), hard_link("a", "a"))
    assert not [name for name in names(into) if name.startswith(".vmgr")]


def test_no_set_user_id_and_no_devices(into: Path) -> None:
    problems = extract(
        into,
        entry("suid", b"x", mode=0o6755),
        directory("sgid", 0o3777),
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("pipe", type=tarfile.FIFOTYPE),
    )
    assert mode(into / "suid") == 0o755
    assert mode(into / "sgid") == 0o777
    assert len(problems) == 2
    assert names(into) == ["sgid", "suid"]


def test_the_machine_does_not_choose_the_name(into: Path) -> None:
    """A copy of `web:notes` into a home directory must not bring a .profile along."""
    extract(into, entry("notes", b"1"), entry(".profile", b"evil"), as_name="notes")
    assert names(into) == ["notes"]


def test_a_directory_in_the_way_of_a_file_and_the_other_way_round(into: Path) -> None:
    (into / "d").mkdir()
    (into / "d/keep").touch()
    (into / "f").touch()
    problems = extract(into, entry("d", b"x"), entry("f/x", b"x"), entry("ok", b"x"))
    assert len(problems) == 2
    assert (into / "d/keep").exists()
    assert names(into) == ["d", "f", "ok"]


def test_an_archive_cut_short_leaves_no_half_file(into: Path) -> None:
    with pytest.raises(AgentError, match="ends early"):
        extract(into, entry("whole", b"x" * 100), entry("half", b"y" * 100_000), cut=50_000)
    assert names(into) == ["whole"]


def test_a_deep_tree(into: Path) -> None:
    assert extract(into, entry("/".join("d" * 900), b"deep")) == []
    assert len(extract(into, entry("/".join("e" * 1100), b"deeper"))) == 1


def test_a_name_longer_than_the_disk_takes_is_a_problem_not_the_end(into: Path) -> None:
    problems = extract(into, entry("n" * 300, b"x"), entry("ok", b"y"))
    assert problems == [f"{'n' * 300}: {os.strerror(errno.ENAMETOOLONG)}"]
    assert names(into) == ["ok"]
