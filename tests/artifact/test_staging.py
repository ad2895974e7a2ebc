from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vmgr.artifact.staging import discard, publish, remove_residue, settle, staging
from vmgr.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import asyncio, sys
from pathlib import Path
from vmgr.artifact.staging import staging

async def main():
    async with staging(Path(sys.argv[1])) as path:
        (path / "half").write_text("made")
        print(path.name, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


async def test_a_published_directory_stays_and_the_rest_goes(tmp_path: Path) -> None:
    async with staging(tmp_path) as stage:
        (stage / "ready").mkdir()
        (stage / "ready/file").write_text("x")
        (stage / "rest").write_text("y")
        assert publish(stage / "ready", tmp_path / "name")
    assert names(tmp_path) == ["name"]
    assert (tmp_path / "name/file").read_text() == "x"


async def test_the_first_of_two_equal_ones_wins(tmp_path: Path) -> None:
    for content, won in (("first", True), ("second", False)):
        async with staging(tmp_path) as stage:
            (stage / "ready").mkdir()
            (stage / "ready/file").write_text(content)
            assert publish(stage / "ready", tmp_path / "name") is won
    assert names(tmp_path) == ["name"]
    assert (tmp_path / "name/file").read_text() == "first"


async def test_nothing_stays_when_the_work_fails_or_is_cancelled(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with staging(tmp_path) as stage:
            (stage / "deep").mkdir()
            (stage / "deep/file").write_text("x")
            (stage / "deep").chmod(0o555)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(tmp_path) == []


async def test_settling_ends_the_work_before_the_cancellation_goes_on() -> None:
    begun, release = asyncio.Event(), asyncio.Event()
    done = False

    async def work() -> None:
        nonlocal done
        begun.set()
        await release.wait()
        done = True

    task = asyncio.create_task(settle(work()))
    await begun.wait()
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_residue_of_the_dead_goes_and_work_of_the_living_stays(tmp_path: Path) -> None:
    def hold() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    living, living_name = hold()
    dead, dead_name = hold()
    with living, dead:
        dead.kill()
        dead.wait()
        try:
            assert await remove_residue(tmp_path) == [dead_name]
            assert names(tmp_path) == [living_name]
        finally:
            living.kill()
    assert await remove_residue(tmp_path) == [living_name]
    assert names(tmp_path) == []


async def test_residue_does_not_follow_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / ".new-link").symlink_to("precious")
    assert await remove_residue(tmp_path) == []
    assert (tmp_path / "precious").is_dir()


async def test_discarding_removes_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "name/sub").mkdir(parents=True)
    (tmp_path / "name/sub/file").write_text("x")
    (tmp_path / "name/sub").chmod(0o500)
    await discard(tmp_path / "name")
    assert names(tmp_path) == []


async def test_discarding_what_is_not_there_leaves_nothing_either(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await discard(tmp_path / "name")
    assert names(tmp_path) == []


async def test_staging_in_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"the directory .*/gone is missing"):
        async with staging(tmp_path / "gone"):
            pass
