from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from vmgr.helper.reachable import inode_of, stop_when_unreachable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_socket_that_is_not_ours_any_more_ends_us(
    tmp_path: Path, *, replaced: bool
) -> None:
    path = tmp_path / "helper.sock"
    path.touch()
    stopping, stopped = asyncio.Event(), asyncio.Event()
    watching = asyncio.create_task(
        stop_when_unreachable(path, inode_of(path), stopping, stopped.set, 0.01)
    )
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not stopped.is_set()
    if replaced:
        (tmp_path / "other").touch()
        (tmp_path / "other").replace(path)
    else:
        path.unlink()
    async with asyncio.timeout(60):
        await stopped.wait()
        await watching


async def test_it_ends_with_the_helper(tmp_path: Path) -> None:
    stopping = asyncio.Event()
    watching = asyncio.create_task(
        stop_when_unreachable(tmp_path / "x", None, stopping, lambda: None)
    )
    stopping.set()
    async with asyncio.timeout(60):
        await watching
