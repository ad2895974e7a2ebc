"""Saved machines in a directory: all that is not as it was written is refused."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import ResourceError, StateError, UnfitStateError
from vmgr.saved import SavedState, files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 1 << 20
STATE = SavedState(
    saved_at=0.0, qemu="7.2.22", machine_type="pc-q35-7.2", accelerator="tcg", kernel_digest="k",
    kernel="6", cpus=1, memory_bytes=SIZE, boot_id="b", init="agent", resync_keys=[b"key"],
    memory_used=4096,
)  # fmt: skip


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
async def saved(tmp_path: Path, executor: ThreadPoolExecutor) -> Path:
    """A machine saved in `saved`, with its disk beside it."""
    directory = tmp_path / "saved"
    directory.mkdir()
    (tmp_path / "disk").write_bytes(b"disk")
    with files.new_files(directory) as (memory, devices):
        os.truncate(memory, SIZE)
        os.pwrite(memory, b"memory" * 100, 8192)
        os.write(devices, b"devices")
    await files.finish(directory, STATE, executor, disk=tmp_path / "disk")
    return directory


async def test_what_was_saved_comes_back(saved: Path, executor: ThreadPoolExecutor) -> None:
    loaded = await files.load(saved, executor, disk=saved.parent / "disk")
    try:
        assert loaded.devices == b"devices"
        assert os.pread(loaded.memory, 6, 8192) == b"memory"
        assert loaded.record.state.qemu == "7.2.22"
    finally:
        loaded.close()


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no record": (lambda d: (d / "saved.json").unlink(), "its saved memory is missing"),
    "half a record": (
        lambda d: os.truncate(d / "saved.json", 100), "the record of its saved memory is damaged"
    ),
    "an empty record": (
        lambda d: (d / "saved.json").write_bytes(b"{}"), "the record of its saved memory is damaged"
    ),
    "devices": (lambda d: flip(d / "devices"), "the saved state of its devices is damaged"),
    "no devices": (
        lambda d: (d / "devices").unlink(), "the saved state of its devices is missing"
    ),
    "short devices": (
        lambda d: os.truncate(d / "devices", 3), "the saved state of its devices is damaged"
    ),
    "short memory": (lambda d: os.truncate(d / "memory", 4096), "is damaged"),
    "no memory": (lambda d: (d / "memory").unlink(), "the saved state of its memory is missing"),
    "a disk written to": (
        lambda d: os.utime(d.parent / "disk"), "its disk has changed since"
    ),
    "another disk": (
        lambda d: (d.parent / "new").rename(d.parent / "disk")
        if (d.parent / "new").write_bytes(b"disk") else None,
        "its disk has changed since",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_seen(saved: Path, executor: ThreadPoolExecutor, damage: str) -> None:
    do, why = DAMAGES[damage]
    do(saved)
    with pytest.raises(UnfitStateError, match=why):
        await files.load(saved, executor, disk=saved.parent / "disk")


@pytest.mark.parametrize("name", ["saved.json", "memory", "devices"])
async def test_what_cannot_be_read_now_is_not_damaged(
    saved: Path, executor: ThreadPoolExecutor, name: str
) -> None:
    """It may be read another time, so it must not be given up."""
    (saved / name).rename(saved / "aside")
    (saved / name).symlink_to(name)  # no file system opens that
    with pytest.raises(StateError, match="cannot be read") as raised:
        await files.load(saved, executor, disk=saved.parent / "disk")
    assert not isinstance(raised.value, UnfitStateError)
    (saved / "aside").replace(saved / name)
    (await files.load(saved, executor, disk=saved.parent / "disk")).close()


async def test_more_than_the_host_has_is_refused_before_it_is_loaded(
    saved: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "available_memory", lambda: 100)
    with pytest.raises(ResourceError, match=r"saved memory, but the host has only 100 B left"):
        await files.load(saved, executor, disk=saved.parent / "disk")


async def test_a_disk_that_is_gone_is_no_crash(saved: Path, executor: ThreadPoolExecutor) -> None:
    (saved.parent / "disk").unlink()
    with pytest.raises(StateError, match="its disk"):
        await files.load(saved, executor, disk=saved.parent / "disk")
