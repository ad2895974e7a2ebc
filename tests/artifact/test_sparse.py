from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vmgr.artifact.sparse import allocated_bytes, copy_sparse, data_extents, digest_sparse

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def write_at(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, offset)
    return path


def test_extents_are_where_the_data_is(tmp_path: Path) -> None:
    path = write_at(tmp_path / "a", 100 * MIB, (10 * MIB, b"x" * 4096), (99 * MIB, b"y" * MIB))
    with path.open("rb") as file:
        extents = list(data_extents(file.fileno()))
    assert sum(end - begin for begin, end in extents) < 3 * MIB
    for offset in (10 * MIB, 99 * MIB, 100 * MIB - 1):
        assert any(begin <= offset < end for begin, end in extents)


def test_a_file_of_holes_has_no_extents(tmp_path: Path) -> None:
    with write_at(tmp_path / "a", 1 << 40).open("rb") as file:
        assert list(data_extents(file.fileno())) == []


def test_digest_sees_content_not_holes(tmp_path: Path) -> None:
    holes = write_at(tmp_path / "a", 8 * MIB, (5 * MIB + 7, b"data"))
    filled = tmp_path / "b"
    filled.write_bytes(holes.read_bytes())
    assert allocated_bytes(filled) > allocated_bytes(holes)
    assert digest_sparse(filled) == digest_sparse(holes)


@pytest.mark.parametrize(
    ("size", "piece"),
    [
        (8 * MIB, (5 * MIB + 8, b"data")),  # moved
        (8 * MIB, (5 * MIB + 7, b"dat_")),  # changed
        (8 * MIB + 1, (5 * MIB + 7, b"data")),  # longer
    ],
)
def test_digest_sees_each_difference(tmp_path: Path, size: int, piece: tuple[int, bytes]) -> None:
    first = write_at(tmp_path / "a", 8 * MIB, (5 * MIB + 7, b"data"))
    assert digest_sparse(first) != digest_sparse(write_at(tmp_path / "b", size, piece))


def test_digest_of_a_terabyte_of_holes_reads_only_the_data(tmp_path: Path) -> None:
    # Were it to read the holes, this test would run into its time-out.
    path = write_at(tmp_path / "a", 1 << 40, (1 << 39, b"x"))
    assert digest_sparse(path).startswith("sha256:")


def test_copy_keeps_content_and_holes(tmp_path: Path) -> None:
    source = write_at(tmp_path / "a", 64 * MIB, (3, b"abc"), (40 * MIB, os.urandom(9 * MIB)))
    target = tmp_path / "b"
    copy_sparse(source, target)
    assert digest_sparse(target) == digest_sparse(source)
    assert allocated_bytes(target) < 12 * MIB
    assert target.stat().st_mode & 0o777 == 0o600


def test_copy_does_not_overwrite(tmp_path: Path) -> None:
    source, target = write_at(tmp_path / "a", 10), write_at(tmp_path / "b", 20)
    with pytest.raises(FileExistsError):
        copy_sparse(source, target)
    assert target.stat().st_size == 20
