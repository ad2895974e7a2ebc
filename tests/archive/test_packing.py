"""What is packed comes out as it was, and nothing else comes out."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.archive.conftest import MIB
from tests.archive.test_porter import archive, member

from vmgr.archive.packing import digests, pack, unpack
from vmgr.artifact.faults import failed
from vmgr.artifact.sparse import digest_sparse
from vmgr.errors import NotFoundError, ResourceError, UsageError, VmgrError
from vmgr.spawner import ProcessFailedError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from vmgr.archive.manifest import Manifest


def silent(_message: str, _part: float | None) -> None:
    pass


async def packed(
    files: dict[str, Path], target: Path, tmp_path: Path, executor: ThreadPoolExecutor
) -> Manifest:
    work = tmp_path / f"work-{target.name}"
    work.mkdir()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        return await pack(
            files, files["root.ext4"], fd, work=work, executor=executor, progress=silent
        )
    finally:
        os.close(fd)


async def test_what_goes_in_comes_out(
    files: dict[str, Path], tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    manifest = await packed(files, tmp_path / "file", tmp_path, executor)
    assert (tmp_path / "file").stat().st_size < MIB
    out = tmp_path / "out"
    out.mkdir()
    parts: list[float | None] = []
    found = await unpack(
        tmp_path / "file", out, executor, lambda _message, part: parts.append(part)
    )
    assert found == manifest
    assert sorted(p.name for p in out.iterdir()) == sorted([*files, "manifest.json"])
    for name, path in files.items():
        copy = out / name
        assert digest_sparse(copy) == digest_sparse(path)
        assert copy.stat().st_size == path.stat().st_size
        assert copy.stat().st_blocks <= path.stat().st_blocks + 16
        assert copy.stat().st_mode & 0o777 == 0o600
    assert manifest.base_digest == digest_sparse(files["root.ext4"])


async def test_gnu_tar_takes_it_out_too(
    files: dict[str, Path], tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    await packed(files, tmp_path / "file", tmp_path, executor)
    out = tmp_path / "out"
    out.mkdir()
    await asyncio.to_thread(
        subprocess.run, ["tar", "--zstd", "-xf", tmp_path / "file", "-C", out], check=True
    )
    for name, path in files.items():
        assert digest_sparse(out / name) == digest_sparse(path)


async def test_a_plain_one_is_read_too(
    files: dict[str, Path], tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    manifest = await packed(files, tmp_path / "file.zst", tmp_path, executor)
    await asyncio.to_thread(
        subprocess.run, ["zstd", "-dqo", tmp_path / "file", tmp_path / "file.zst"], check=True
    )
    out = tmp_path / "out"
    out.mkdir()
    assert await unpack(tmp_path / "file", out, executor, silent) == manifest


async def test_a_full_disk_is_said(
    files: dict[str, Path], tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(ProcessFailedError) as caught:
            await pack(files, files["root.ext4"], fd, work=work, executor=executor, progress=silent)
        assert isinstance(failed(caught.value, "export it", tmp_path), ResourceError)
    finally:
        os.close(fd)


async def test_there_is_room_before_anything_is_written(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """A manifest that says more than there is room for."""
    (tmp_path / "file").write_bytes(
        archive([member("root.ext4", b"x", size=8 << 40, data=8 << 40)])
    )
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ResourceError, match=r"no space left in .* free, about 8\.0 TiB needed"):
        await unpack(tmp_path / "file", out, executor, silent)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: it ends too early"),
        (b"\x28\xb5\x2f\xfd", "is damaged: it ends too early"),
        (b"x" * 600, "is not a snapshot that vmgr exported"),
        (bytes(2_000), "is not a snapshot that vmgr exported"),
    ],
)
async def test_files_that_are_no_archives(
    tmp_path: Path, executor: ThreadPoolExecutor, content: bytes, message: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        await unpack(path, tmp_path, executor, silent)


async def test_paths_that_are_no_files(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        await unpack(tmp_path / "none", tmp_path, executor, silent)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(UsageError, match="is not a regular file"):
            await unpack(path, tmp_path, executor, silent)


async def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(VmgrError, match="could not read the snapshot: No such file"):
        await digests([tmp_path / "none"], lambda _part: None)
