"""Files as snapshots have them, and archives of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A sparse file, one that ends in a hole, an empty one, one without holes."""
    directory = tmp_path / "files"
    directory.mkdir()
    contents = {"memory": 64 * MIB, "disk.qcow2": 0, "devices": 3, "root.ext4": 4096 * MIB}
    for name, size in contents.items():
        path = directory / name
        path.touch()
        os.truncate(path, size)
    with (directory / "memory").open("r+b") as file:
        for offset in (0, 5 * MIB, 63 * MIB):
            file.seek(offset)
            file.write(os.urandom(5_000))
    with (directory / "root.ext4").open("r+b") as file:
        file.seek(2048 * MIB)
        file.write(b"in the middle")
    (directory / "devices").write_bytes(b"abc")
    return {name: directory / name for name in contents}
