from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from vmgr.artifact.privilege import Privilege, PrivilegeKind, find_privilege
from vmgr.artifact.staging import remove_tree
from vmgr.artifact.tools import build_environment
from vmgr.spawner import run

if TYPE_CHECKING:
    from pathlib import Path


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
async def privilege() -> Privilege:
    return await find_privilege()


async def test_root_is_used_where_we_are_root(privilege: Privilege) -> None:
    assert (privilege.kind is PrivilegeKind.ROOT) == (os.geteuid() == 0)


async def test_commands_see_themselves_as_root_and_can_give_files_away(
    privilege: Privilege, tmp_path: Path
) -> None:
    script = 'id -u; touch "$1/f"; chown 8:12 "$1/f"; stat -c %u:%g "$1/f"'
    done = await run(
        privilege.wrap(["sh", "-ceu", script, "sh", tmp_path]), env=build_environment()
    )
    assert done.stdout.decode().split() == ["0", "8:12"]
    await remove_tree(tmp_path / "f", privilege)
    assert names(tmp_path) == []


async def test_nothing_survives_a_cancelled_build(privilege: Privilege, tmp_path: Path) -> None:
    if not privilege.namespaces:
        pytest.skip("this host allows no namespaces, so there is no such promise")
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    # In a session of its own, as daemons are: no process group reaches it.
    script = 'setsid sh -c "exec 3>\\"$1\\"; echo up >&3; exec sleep 1000" sh "$1" & wait'
    task = asyncio.create_task(run(privilege.wrap(["sh", "-c", script, "sh", fifo])))
    loop = asyncio.get_running_loop()
    with os.fdopen(await loop.run_in_executor(None, os.open, fifo, os.O_RDONLY), "rb") as alive:
        assert await loop.run_in_executor(None, alive.readline) == b"up\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The end of file comes when the last process that holds the other end is gone.
        assert await loop.run_in_executor(None, alive.read) == b""
