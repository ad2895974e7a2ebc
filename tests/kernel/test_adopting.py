"""A kernel bundle from a stranger is what its digest says, and claims nothing else."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.artifact.sparse import digest_sparse
from vmgr.errors import UnsupportedError, UsageError
from vmgr.kernel import KernelFiles
from vmgr.kernel.model import FORMAT
from vmgr.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def kernels(tmp_path: Path) -> Iterator[KernelFiles]:
    paths = Paths.from_environment({"VMGR_HOME": str(tmp_path / "home")})
    paths.ensure()
    with ThreadPoolExecutor(2) as pool:
        yield KernelFiles(paths, pool)


@pytest.fixture
def arrived(tmp_path: Path) -> Path:
    files = tmp_path / "arrived"
    fill(files)
    return files


def fill(files: Path, **changed: Any) -> None:
    files.mkdir(exist_ok=True)
    for name in ("vmlinux", "vmlinuz", "initramfs.cpio", "modules.ext4"):
        (files / name).write_bytes(name.encode())
    told = {
        "format": FORMAT, "release": "6.12", "version": "99", "part": "part-x",
        "agent_sha256": "ours", "initramfs_sha256": "x", "built_at": 1e12, **changed,
    }  # fmt: skip
    (files / "bundle.json").write_text(json.dumps(told))


def digest_of(files: Path) -> str:
    parts = (
        hashlib.sha256((files / "vmlinux").read_bytes()).hexdigest(),
        hashlib.sha256((files / "initramfs.cpio").read_bytes()).hexdigest(),
        digest_sparse(files / "modules.ext4"),
    )
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


async def test_what_is_what_it_says(kernels: KernelFiles, arrived: Path) -> None:
    digest = digest_of(arrived)
    bundle = await kernels.adopt(arrived, digest)
    assert bundle.digest == digest
    assert bundle.kernel.read_bytes() == b"vmlinux"
    # New machines start with the bundle that has their agent: it cannot pass for that.
    assert bundle.agent_sha256 == ""
    # The digest says nothing of it.
    assert not bundle.bzimage.exists()
    fill(arrived)
    assert (await kernels.adopt(arrived, digest)).digest == digest
    assert [b.digest for b in await kernels.list()] == [digest]


@pytest.mark.parametrize("name", ["vmlinux", "initramfs.cpio", "modules.ext4"])
async def test_another_one_is_refused(kernels: KernelFiles, arrived: Path, name: str) -> None:
    digest = digest_of(arrived)
    (arrived / name).write_bytes(b"evil")
    with pytest.raises(UsageError, match="its kernel is not the one that it names"):
        await kernels.adopt(arrived, digest)
    assert await kernels.list() == []


async def test_descriptions_that_are_refused(kernels: KernelFiles, arrived: Path) -> None:
    digest = digest_of(arrived)
    fill(arrived, format=FORMAT + 1)
    with pytest.raises(UnsupportedError, match="of another version"):
        await kernels.adopt(arrived, digest)
    (arrived / "bundle.json").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="description is damaged"):
        await kernels.adopt(arrived, digest)
    fill(arrived)
    for name in ("vmlinux", "vmlinuz"):
        (arrived / name).unlink()
    with pytest.raises(UsageError, match="it has no kernel"):
        await kernels.adopt(arrived, digest)
