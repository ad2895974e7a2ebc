from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING

from vmgr.helper.logtail import tail_file

if TYPE_CHECKING:
    from pathlib import Path


async def collect(path: Path, **options: object) -> bytes:
    chunks = tail_file(path, in_thread=asyncio.to_thread, **{  # type: ignore[arg-type]
        "lines": None, "follow": False, **options,
    })  # fmt: skip
    return b"".join([c async for c in chunks])


async def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert await collect(tmp_path / "console.log") == b""


async def test_the_rotated_file_comes_first_and_tail_counts_lines(tmp_path: Path) -> None:
    (tmp_path / "console.log.1").write_bytes(b"a\nb\n")
    (tmp_path / "console.log").write_bytes(b"c\nd")
    assert await collect(tmp_path / "console.log") == b"a\nb\nc\nd"
    assert await collect(tmp_path / "console.log", lines=2) == b"c\nd"
    assert await collect(tmp_path / "console.log", containing=re.compile(b"b")) == b"b\n"
    # Of those that are wanted the last ones, however many others come after them.
    assert await collect(tmp_path / "console.log", lines=1, containing=re.compile(b"a")) == b"a\n"


async def test_following_crosses_a_rotation_and_ends_with_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "machine"
    directory.mkdir()
    path = directory / "console.log"
    path.write_bytes(b"1\n")
    chunks = tail_file(path, lines=None, follow=True, in_thread=asyncio.to_thread)
    assert await anext(chunks) == b"1\n"
    with path.open("ab") as file:
        file.write(b"2\n")
    assert await anext(chunks) == b"2\n"
    path.rename(directory / "console.log.1")
    path.write_bytes(b"3\n")
    assert await anext(chunks) == b"3\n"
    await asyncio.to_thread(shutil.rmtree, directory)
    assert [c async for c in chunks] == []
