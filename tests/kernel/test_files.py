"""The real thing: Debian's kernel from the host's mirror, fetched once for the module."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from vmgr.errors import NotFoundError, StateError
from vmgr.kernel import KernelBundle, KernelFiles
from vmgr.kernel.vmlinux import has_pvh_entry
from vmgr.paths import Paths

from .test_cpio import entries

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def quiet(_message: str, _fraction: float | None) -> None:
    pass


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a kernel part and one bundle."""
    home = tmp_path_factory.mktemp("kernels")
    agent = home / "agent"
    agent.write_bytes(b"agent one")
    paths = Paths.from_environment({"VMGR_HOME": str(home)})
    paths.ensure()

    async def build() -> None:
        with ThreadPoolExecutor(2) as pool:
            await KernelFiles(paths, pool).ensure(agent, quiet)

    asyncio.run(build())
    return home


def copy_or_link(source: str, target: str) -> None:
    (os.link if Path(source).stat().st_size > 4 << 20 else shutil.copy2)(source, target)


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of it for one test, hard links and all."""
    shutil.copytree(built, tmp_path / "home", copy_function=copy_or_link)
    return tmp_path / "home"


@pytest.fixture
def kernels(home: Path, executor: ThreadPoolExecutor) -> Iterator[KernelFiles]:
    paths = Paths.from_environment({"VMGR_HOME": str(home)})
    yield KernelFiles(paths, executor)
    assert list(paths.kernels.glob(".*")) == []


@pytest.fixture
async def bundle(kernels: KernelFiles) -> KernelBundle:
    (found,) = await kernels.list()
    return found


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


async def test_a_bundle_has_all_that_a_machine_boots_from(bundle: KernelBundle) -> None:
    assert has_pvh_entry(bundle.kernel.read_bytes())
    assert bundle.bzimage.read_bytes()[0x202:0x206] == b"HdrS"
    archive = {
        name: (mode, content) for name, mode, content, _ in entries(bundle.initramfs.read_bytes())
    }
    assert archive["init"] == (0o100755, b"agent one")
    loads = archive["modules.load"][1].decode().split()
    assert loads[-1] == "/lib/modules/virtio_blk.ko"
    for path in loads:
        assert archive[path.lstrip("/")][1].startswith(b"\x7fELF")
    assert "dev/console" in archive
    for path in bundle.directory.iterdir():
        assert path.stat().st_mode & 0o222 == 0


async def test_the_module_disk_is_a_sound_file_system_that_root_owns(bundle: KernelBundle) -> None:
    def output(*argv: object) -> str:
        words = [str(word) for word in argv]
        return subprocess.run(
            words, capture_output=True, text=True, check=True, env=ENVIRONMENT
        ).stdout

    output("e2fsck", "-fn", bundle.modules)
    top = output("debugfs", "-R", "ls -p /", bundle.modules)
    assert "/modules.dep.bin/" in top
    assert all(line.split("/")[3:5] == ["0", "0"] for line in top.splitlines() if line)
    depends = output("debugfs", "-R", "cat /modules.dep", bundle.modules)
    for module in ("overlay", "virtio_net", "vsock"):
        assert f"/{module}.ko:" in depends
    assert ".ko.xz" not in depends


async def test_what_is_there_is_found_again_without_the_network(
    kernels: KernelFiles, home: Path, bundle: KernelBundle
) -> None:
    told: list[str] = []
    again = await kernels.ensure(home / "agent", lambda message, _: told.append(message))
    assert again == bundle
    assert told == []
    assert await kernels.get(bundle.digest) == bundle


async def test_a_new_agent_costs_an_initramfs_and_no_more(
    kernels: KernelFiles, home: Path, bundle: KernelBundle
) -> None:
    (home / "agent2").write_bytes(b"agent two")
    told: list[str] = []
    second = await kernels.ensure(home / "agent2", lambda message, _: told.append(message))
    assert told == ["Writing the initramfs"]
    assert second.digest != bundle.digest
    assert second.kernel.samefile(bundle.kernel)
    assert second.modules.samefile(bundle.modules)
    assert await kernels.list() == [bundle, second]
    # The old one goes, the new one does not miss it.
    freed = await kernels.remove(bundle.digest)
    assert 0 < freed < 4 << 20
    assert await kernels.list() == [second]


async def test_two_at_once_share_the_work(kernels: KernelFiles, home: Path) -> None:
    (home / "agent2").write_bytes(b"agent two")
    told: list[str] = []
    calls = [kernels.ensure(home / "agent2", lambda m, _: told.append(m)) for _ in range(3)]
    assert len({bundle.digest for bundle in await asyncio.gather(*calls)}) == 1
    assert told == ["Writing the initramfs"]


async def test_damaged_bundles_are_made_anew(
    kernels: KernelFiles, home: Path, bundle: KernelBundle, caplog: pytest.LogCaptureFixture
) -> None:
    bundle.initramfs.unlink()
    with pytest.raises(StateError, match=r"is damaged: initramfs\.cpio is missing"):
        await kernels.get(bundle.digest)
    mended = await kernels.ensure(home / "agent", quiet)
    assert mended == bundle
    assert mended.initramfs.is_file()
    assert "initramfs.cpio is missing" in caplog.text


@pytest.mark.parametrize("name", ["vmlinux", "modules.ext4"])
async def test_a_file_that_was_cut_short_is_damage(
    kernels: KernelFiles, home: Path, bundle: KernelBundle, name: str
) -> None:
    damaged = bundle.directory / name
    content = damaged.read_bytes()[:5000]
    damaged.unlink()
    damaged.write_bytes(content)
    with pytest.raises(StateError, match=rf"is damaged: {name} has another size"):
        await kernels.get(bundle.digest)
    # The part has a good one.
    told: list[str] = []
    mended = await kernels.ensure(home / "agent", lambda message, _: told.append(message))
    assert mended == bundle
    assert told == ["Writing the initramfs"]


async def test_damage_that_leaves_the_size_is_noticed(
    kernels: KernelFiles, home: Path, bundle: KernelBundle
) -> None:
    initramfs = bundle.initramfs
    content = bytearray(initramfs.read_bytes())
    assert await kernels.verify() == []
    # Copied or touched, it is what it was.
    os.utime(initramfs, (1, 1))
    assert (await kernels.get(bundle.digest)).digest == bundle.digest
    content[-600] ^= 1
    initramfs.unlink()
    initramfs.write_bytes(content)
    with pytest.raises(StateError, match="its files are not those that were written"):
        await kernels.get(bundle.digest)
    # A start sees the time of the last change only; who looks at the content sees it all the same.
    at = msgspec.json.decode((bundle.directory / "bundle.json").read_bytes())["written_at"]
    os.utime(initramfs, ns=(at["initramfs.cpio"], at["initramfs.cpio"]))
    assert (await kernels.get(bundle.digest)).digest == bundle.digest
    (sentence,) = await kernels.verify()
    assert sentence.startswith(f"the kernel bundle {bundle.directory.name[:12]} is damaged")
    assert (await kernels.ensure(home / "agent", quiet)).digest == bundle.digest
    assert await kernels.verify() == []


async def test_a_part_of_another_version_is_removed_with_a_word(
    kernels: KernelFiles, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (part,) = (home / "cache/kernels").glob("part-*")
    old = part.with_name("part-1-linux-image-6.1_6.1")
    old.mkdir()
    (old / "part.json").write_text('{"format": 1, "release": "6.1"}')
    assert await kernels.remove_residue() == [old.name]
    assert not old.exists()
    assert part.exists()
    assert [r for r in caplog.records if "another vmgr version" in r.message]
    caplog.clear()
    assert await kernels.remove_residue() == []
    assert caplog.records == []


async def test_a_part_that_is_damaged_is_fetched_anew(
    kernels: KernelFiles, home: Path, bundle: KernelBundle
) -> None:
    (part,) = (home / "cache/kernels").glob("part-*")
    for directory in (part, bundle.directory):
        (directory / "vmlinux").unlink()
        (directory / "vmlinux").touch()
    told: list[str] = []
    mended = await kernels.ensure(home / "agent", lambda message, _: told.append(message))
    assert has_pvh_entry(mended.kernel.read_bytes())
    assert "Unpacking the kernel" in told


async def test_a_missing_agent_and_a_missing_bundle(kernels: KernelFiles, home: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no agent at"):
        await kernels.ensure(home / "nothing", quiet)
    for digest in ("sha256:" + "0" * 64, "sha256:../../x", "part-1"):
        with pytest.raises(NotFoundError, match="there is no kernel bundle"):
            await kernels.get(digest)
        with pytest.raises(NotFoundError, match="there is no kernel bundle"):
            await kernels.remove(digest)


async def test_pruning_keeps_the_newest_kernel(
    kernels: KernelFiles, home: Path, bundle: KernelBundle
) -> None:
    (part,) = [name for name in names(home / "cache/kernels") if name.startswith("part-")]
    old = home / "cache/kernels/part-1-linux-image-5.10_5.10.1-1"
    shutil.copytree(home / "cache/kernels" / part, old)
    info = (old / "part.json").read_text().replace(f'"{bundle.version}"', '"5.10.1-1"')
    (old / "part.json").unlink()
    (old / "part.json").write_text(info)
    (home / "cache/apt/archives/left.deb").write_bytes(bytes(100_000))
    assert await kernels.prune() > 100_000
    assert names(home / "cache/kernels") == sorted([bundle.directory.name, part])
    assert names(home / "cache/apt/archives") == ["partial"] or not names(
        home / "cache/apt/archives"
    )


async def test_a_cancelled_build_leaves_nothing(
    kernels: KernelFiles, home: Path, executor: ThreadPoolExecutor
) -> None:
    paths = Paths.from_environment({"VMGR_HOME": str(home)})
    for entry in paths.kernels.iterdir():
        shutil.rmtree(entry)
    unpacking = asyncio.Event()

    def progress(message: str, _fraction: float | None) -> None:
        if message.startswith("Unpacking the kernel's modules"):
            unpacking.set()

    task = asyncio.create_task(kernels.ensure(home / "agent", progress))
    await unpacking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(paths.kernels) == []
    assert not executor._shutdown
