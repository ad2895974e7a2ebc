"""Templates on disk: found whole or not at all, bounded, without residue."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import pytest

from vmgr.saved import SavedState
from vmgr.template import TemplateFiles
from vmgr.template.files import RECORD, TemplateRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMORY = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> Iterator[TemplateFiles]:
    with ThreadPoolExecutor(1) as executor:
        yield TemplateFiles(tmp_path, executor)


def make(root: Path, key: str, used_at: float) -> Path:
    """A template as one that was built looks."""
    directory = root / key
    directory.mkdir()
    saved = SavedState(
        saved_at=1.0, qemu="7.2.22", machine_type="pc-q35-7.2", accelerator="tcg",
        kernel_digest="sha256:1", kernel="6.12", cpus=1, memory_bytes=MEMORY, boot_id="b",
        init="agent", resync_keys=[b"k" * 16], memory_used=MEMORY,
    )  # fmt: skip
    record = TemplateRecord(
        id=key * 2, image_digest="sha256:2", disk_bytes=1, disk_checksum=0, devices_checksum=0,
        saved=saved,
    )  # fmt: skip
    (directory / RECORD).write_bytes(msgspec.json.encode(record))
    (directory / "memory").write_bytes(b"m" * MEMORY)
    for name in ("devices", "disk.qcow2"):
        (directory / name).write_bytes(b"x")
    os.utime(directory, (used_at, used_at))
    return directory


async def test_the_one_used_last_comes_first(files: TemplateFiles) -> None:
    for key, used_at in (("a", 10), ("b", 30), ("c", 20)):
        make(files.root, key, used_at)
    assert [t.key for t in await files.all()] == ["b", "c", "a"]
    found = await files.get("a")
    assert found is not None
    await files.touch(found)
    assert [t.key for t in await files.all()] == ["a", "b", "c"]


async def test_what_was_not_used_for_longest_goes(files: TemplateFiles) -> None:
    for key, used_at in (("a", 10), ("b", 30), ("c", 20), ("d", 40)):
        make(files.root, key, used_at)
    assert sorted(await files.bound(3, 1 << 40)) == ["a"]
    size = (await files.all())[0].size_bytes
    assert sorted(await files.bound(3, 2 * size)) == ["c"]
    assert [t.key for t in await files.all()] == ["d", "b"]


@pytest.mark.parametrize("damage", ["no record", "bad record", "no memory", "short memory"])
async def test_half_a_template_is_none(files: TemplateFiles, damage: str) -> None:
    directory = make(files.root, "a", 10)
    match damage:
        case "no record":
            (directory / RECORD).unlink()
        case "bad record":
            (directory / RECORD).write_bytes(b"{}")
        case "no memory":
            (directory / "memory").unlink()
        case _:
            os.truncate(directory / "memory", MEMORY - 1)
    assert await files.get("a") is None
    assert await files.all() == []
    assert await files.reconcile() == ["a"]
    assert list(files.root.iterdir()) == []


async def test_what_a_dead_builder_left_goes(files: TemplateFiles) -> None:
    make(files.root, "a", 10)
    (files.root / ".new-123").mkdir()
    (files.root / ".new-123" / "memory").write_bytes(b"half")
    assert await files.reconcile() == [".new-123"]
    assert [entry.name for entry in files.root.iterdir()] == ["a"]


async def test_a_missing_one_is_none(files: TemplateFiles) -> None:
    assert await files.get("a") is None
    await files.remove("a")
