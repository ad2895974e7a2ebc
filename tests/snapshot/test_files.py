"""Snapshots on disk appear whole and go whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmgr.artifact.staging import staging
from vmgr.snapshot import SnapshotFiles, SnapshotRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def record(tag: str, *, number: int = 1) -> SnapshotRecord:
    return SnapshotRecord(
        id=f"{number:012x}", tag=tag, machine="web", machine_id="0" * 12, created_at=number,
        image_digest="sha256:0", disk_bytes=1 << 30, row={"name": "web"},
    )  # fmt: skip


async def published(files: SnapshotFiles, what: SnapshotRecord) -> None:
    async with staging(files.root) as stage:
        (stage / "disk.qcow2").write_bytes(b"disk")
        await files.publish(stage, what)


async def test_another_helper_finds_what_was_published(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    files = SnapshotFiles(tmp_path, executor)
    await files.open()
    await published(files, record("two", number=2))
    await published(files, record("one"))
    again = SnapshotFiles(tmp_path, executor)
    assert await again.open() == []
    assert [s.name for s in again.all()] == ["web:one", "web:two"]
    found = again.find("web", "one")
    assert found is not None
    assert found.record == record("one")
    assert not found.has_memory
    assert found.disk.read_bytes() == b"disk"
    assert again.find("web", "three") is None
    assert again.of("db") == []


async def test_a_removed_one_is_gone(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    files = SnapshotFiles(tmp_path, executor)
    await published(files, record("one"))
    found = files.find("web", "one")
    assert found is not None
    await files.remove(found)
    assert files.all() == []
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 (nothing else runs)


async def test_damaged_ones_and_residue_are_not_shown(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    files = SnapshotFiles(tmp_path, executor)
    await published(files, record("one"))
    await published(files, record("two", number=2))
    (tmp_path / f"{2:012x}" / "snapshot.json").write_bytes(b"{")
    (tmp_path / ".new-0123").mkdir()
    again = SnapshotFiles(tmp_path, executor)
    assert await again.open() == [".new-0123"]
    assert [s.name for s in again.all()] == ["web:one"]
    # Nobody deletes what may still be of use to a person.
    assert (tmp_path / f"{2:012x}" / "disk.qcow2").exists()
