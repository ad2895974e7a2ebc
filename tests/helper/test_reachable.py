from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from vmgr.helper.reachable import inode_of, stop_when_unreachable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("how", ["removed", "replaced", "its directory removed", "before"])
async def test_a_socket_that_is_not_ours_any_more_ends_us(tmp_path: Path, how: str) -> None:
    path = tmp_path / "run/helper.sock"
    path.parent.mkdir()
    path.touch()
    inode, stopped = inode_of(path), asyncio.Event()
    if how == "before":
        path.unlink()
    watching = asyncio.create_task(stop_when_unreachable(path, inode, stopped.set))
    if how == "removed":
        path.unlink()
    elif how == "replaced":
        (tmp_path / "other").touch()
        (tmp_path / "other").replace(path)
    elif how == "its directory removed":
        shutil.rmtree(path.parent)
    async with asyncio.timeout(60):
        await stopped.wait()
        await watching


async def test_ours_is_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "helper.sock", tmp_path / "other"
    path.touch()
    stopped, asked = asyncio.Event(), asyncio.Event()
    watching = asyncio.create_task(stop_when_unreachable(path, inode_of(path), stopped.set))
    watching.add_done_callback(lambda _: asked.set())
    for _ in range(100):
        other.touch()
        other.unlink()
        path.chmod(0o600)
        await asyncio.to_thread(inode_of, path)  # a turn of the loop, and of its threads
    assert not stopped.is_set()
    watching.cancel()
    await asked.wait()
