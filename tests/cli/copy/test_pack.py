from __future__ import annotations

import io
import os
import socket
import tarfile
from typing import TYPE_CHECKING

from vmgr.cli.copy.extract import Extractor
from vmgr.cli.copy.pack import pack
from vmgr.cli.copy.tarreader import TarReader

if TYPE_CHECKING:
    from pathlib import Path


def packed(*sources: tuple[Path, str], owners: bool = False) -> tuple[bytes, list[str]]:
    problems: list[str] = []
    pairs = [(str(path), name) for path, name in sources]
    data = b"".join(pack(pairs, owners=owners, on_problem=problems.append))
    return data, problems


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: info for info in tar}


def tree(root: Path) -> Path:
    (root / "src/sub").mkdir(parents=True)
    (root / "src/file").write_bytes(b"content" * 1000)
    (root / "src/file").chmod(0o4711)
    os.utime(root / "src/file", ns=(1, 1_600_000_000_123_456_789))
    (root / "src/sub/empty").touch(mode=0o600)
    (root / "src/link").symlink_to("sub/empty")
    (root / "src/dangling").symlink_to("/nowhere")
    os.link(root / "src/file", root / "src/zz-hard")
    (root / "src" / ("long-" + "n" * 240)).write_text("x")
    (root / "src" / b"\xff\xfe".decode(errors="surrogateescape")).write_text("y")
    return root / "src"


def test_tar_reads_what_we_write(tmp_path: Path) -> None:
    data, problems = packed((tree(tmp_path), "top"))
    assert problems == []
    found = members(data)
    assert found["top"].isdir()
    assert found["top/file"].mode == 0o4711
    assert found["top/file"].pax_headers["mtime"] == "1600000000.123456789"
    assert found["top/link"].linkname == "sub/empty"
    assert found["top/zz-hard"].islnk()
    assert found["top/zz-hard"].linkname == "top/file"
    assert found["top/\udcff\udcfe"].isfile()
    assert {info.uid for info in found.values()} == {0}
    assert len(data) % 512 == 0


def test_what_is_packed_comes_out_the_same(tmp_path: Path) -> None:
    source = tree(tmp_path)
    data, _ = packed((source, "copy"))
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    problems: list[str] = []
    Extractor(fd, on_problem=problems.append).extract(TarReader(io.BytesIO(data).read))
    os.close(fd)
    assert problems == []
    copy = tmp_path / "copy"
    assert sorted(p.relative_to(copy) for p in copy.rglob("*")) == sorted(
        p.relative_to(source) for p in source.rglob("*")
    )
    for path in source.rglob("*"):
        twin = copy / path.relative_to(source)
        before, after = path.lstat(), twin.lstat()
        assert after.st_mtime_ns == before.st_mtime_ns, path
        if path.is_symlink():
            assert twin.readlink() == path.readlink()
        else:
            assert after.st_mode & 0o777 == before.st_mode & 0o777
            if path.is_file():
                assert twin.read_bytes() == path.read_bytes()


def test_owners_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    data, _ = packed((tmp_path / "f", "f"), owners=True)
    assert members(data)["f"].uid == os.getuid()


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d/pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "d/socket"))
        (tmp_path / "d/ok").write_text("x")
        data, problems = packed((tmp_path / "d", "d"), (tmp_path / "gone", "gone"))
    assert sorted(members(data)) == ["d", "d/ok"]
    assert len(problems) == 3


def test_a_file_that_shrinks_while_it_is_read_keeps_the_archive_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1_000_000)
    (tmp_path / "b").write_bytes(b"y")
    problems: list[str] = []
    pieces = pack(
        [(str(tmp_path / "a"), "a"), (str(tmp_path / "b"), "b")],
        owners=False,
        on_problem=problems.append,
    )
    data = next(pieces) + next(pieces)
    os.truncate(tmp_path / "a", 300_000)
    data += b"".join(pieces)
    found = members(data)
    assert found["a"].size == 1_000_000
    assert "b" in found
    assert len(problems) == 1
