"""The directory of kernels: building, listing and removing kernel bundles.

`kernels/part-KEY/` is what comes from one kernel package: `vmlinux` and `vmlinuz`, `modules.ext4`,
the boot modules in `boot/`, and `part.json`. `kernels/HEX/` is a bundle: hard links to the files of
its part, the initramfs with one agent in it, and `bundle.json`. So a new agent costs one small
file, and either kind of directory can be removed without harm to the other. All of it is a cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import msgspec

from vmgr.artifact.apt import Apt, Package, debian_architecture
from vmgr.artifact.ext4 import make_tree_disk
from vmgr.artifact.faults import failed, require_space
from vmgr.artifact.privilege import Privilege, PrivilegeKind, find_privilege
from vmgr.artifact.sparse import allocated_bytes, digest_file, digest_sparse
from vmgr.artifact.staging import discard, publish, publish_sound, remove_residue, staging
from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import build_environment, require
from vmgr.errors import NotFoundError, StateError, UnsupportedError, VmgrError
from vmgr.kernel.adopting import adopt
from vmgr.kernel.cpio import NewcWriter
from vmgr.kernel.model import (
    BUNDLE_NAME,
    FORMAT,
    PART_NAME,
    BundleInfo,
    KernelBundle,
    PartInfo,
)
from vmgr.kernel.modules import NETWORK_MODULES, boot_modules, unpack_modules
from vmgr.kernel.vmlinux import extract_vmlinux
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from vmgr.artifact import Progress
    from vmgr.paths import Paths

__all__ = ["KernelFiles"]

Names = list[str]  # `list` is a method below
Directories = list[Path]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_PART: Final = re.compile(r"part-[A-Za-z0-9.+~_-]+")
_SPACE_NEEDED: Final = 512 << 20  # the package, its unpacked tree twice, the kernel
_DEADLINE: Final = 600.0
_MODULES_SLACK: Final = 16 << 20
_JSON_LIMIT: Final = 1 << 20
_log = logging.getLogger(__name__)


class _Versioned(msgspec.Struct):
    format: int


class KernelFiles:
    """The kernel bundles of one user.

    Args:
        paths: `paths.kernels` is the directory.
        executor: for reading and writing files.
    """

    def __init__(self, paths: Paths, executor: Executor) -> None:
        self._root = paths.kernels
        self._executor = executor
        self._apt = Apt(paths, executor)
        self._lock = asyncio.Lock()

    async def ensure(
        self, agent: Path, progress: Progress, *, newest: bool = False
    ) -> KernelBundle:
        """The bundle of the newest kernel that is here with that agent; made if there is none.

        Calls at the same time share the work.

        Args:
            agent: the program that becomes `/init`: static, for this architecture.
            progress: told each step.
            newest: look for a newer kernel at the mirrors; otherwise the network is only used when
                there is no kernel at all.

        Raises:
            NotFoundError: there is no agent at that path.
            UnsupportedError: a tool, or a mirror with a cloud kernel, is missing.
            ResourceError: no space left.
            VmgrError: the mirror cannot be reached.
        """
        async with self._lock:
            agent_sha256 = await self._agent_digest(agent)
            part = None if newest else await self._in_executor(self._newest_part)
            if part is None:
                part = await self._build_part(progress)
            for bundle in await self.list():
                if bundle.agent_sha256 == agent_sha256 and bundle.version == part[1].version:
                    return bundle
            progress("Writing the initramfs", None)
            return await self._build_bundle(*part, agent, agent_sha256)

    async def list(self) -> list[KernelBundle]:
        """All bundles, oldest first. Damaged ones are skipped, and the log says why."""

        def read_all() -> list[KernelBundle]:
            found = []
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(self._root):
                    if not _HEX.fullmatch(entry.name):
                        continue
                    try:
                        found.append(_read_bundle(Path(entry.path)))
                    except VmgrError as error:
                        _log.warning("skipping the kernel %s: %s", entry.name[:12], error.message)
            return [bundle for _at, bundle in sorted(found, key=lambda x: (x[0], x[1].digest))]

        return await self._in_executor(read_all)

    async def get(self, digest: str) -> KernelBundle:
        """The bundle with that digest (`sha256:HEX`).

        Raises:
            NotFoundError: there is none.
            StateError: its files are damaged.
        """
        return (await self._in_executor(_read_bundle, self._directory(digest)))[1]

    async def adopt(self, files: Path, digest: str) -> KernelBundle:
        """Make a bundle of files that came from elsewhere, see `vmgr.kernel.adopting`."""
        return (await adopt(self._root, files, digest, _read_bundle, self._executor))[1]

    async def remove(self, digest: str) -> int:
        """Remove a bundle; gives the bytes that this freed (its part keeps what is shared).

        Raises:
            NotFoundError: there is none.
        """
        directory = self._directory(digest)
        freed = await self._in_executor(_freed, directory)
        try:
            await discard(directory)
        except FileNotFoundError:
            raise _no_bundle(digest) from None
        return freed

    async def prune(self) -> int:
        """Remove downloaded packages and all parts but the newest; gives the bytes freed."""
        async with self._lock:
            newest = await self._in_executor(self._newest_part)
            freed = 0
            for directory in await self._in_executor(self._parts):
                if newest is None or directory != newest[0]:
                    freed += await self._in_executor(_freed, directory)
                    await discard(directory)
            return freed + await self._in_executor(self._apt.clean)

    async def verify(self) -> Names:
        """Compare the content of all bundles with their digests; gives a sentence for each damage.

        Reads all of it, for a second or so. What is damaged is not used again.
        """

        def check() -> list[str]:
            sentences = []
            for entry in sorted(self._root.glob("*")):
                if _HEX.fullmatch(entry.name):
                    try:
                        bundle = _read_bundle(entry)[1]
                        try:
                            _check_content(bundle)
                        except VmgrError:
                            _distrust(bundle)
                            raise
                    except VmgrError as error:
                        sentences.append(error.message)
            return sentences

        return await self._in_executor(check)

    async def remove_residue(self) -> Names:
        """Remove what builds of dead processes left half-made; gives the names.

        And parts that other versions of vmgr made, which nothing here can use.
        """
        gone = await remove_residue(self._root)
        for part in await self._in_executor(self._parts):
            if await self._in_executor(_is_of_another_version, part):
                _log.warning("removing the kernel in %s, which another vmgr version made", part)
                await discard(part)
                gone.append(part.name)
        return gone

    # -- parts ---------------------------------------------------------------------------------

    def _parts(self) -> Directories:
        if not self._root.is_dir():
            return []
        return sorted(p for p in self._root.iterdir() if _PART.fullmatch(p.name))

    def _newest_part(self) -> tuple[Path, PartInfo] | None:
        found = []
        for directory in self._parts():
            try:
                info = _read_part(directory)
                if info.format == FORMAT:
                    found.append((_release_key(info.version), info.built_at, directory, info))
            except VmgrError as error:
                _log.warning("skipping the kernel in %s: %s", directory, error.message)
        if not found:
            return None
        *_, directory, info = max(found, key=lambda x: x[:2])
        return directory, info

    async def _build_part(self, progress: Progress) -> tuple[Path, PartInfo]:
        require("apt-get", "apt-cache", "dpkg-deb", "depmod", "mke2fs")
        require_space(self._root, _SPACE_NEEDED)
        package = await self._choose_package(progress)
        directory = self._root / f"part-{FORMAT}-{package.name}_{package.version.replace(':', '~')}"
        with contextlib.suppress(VmgrError):
            return directory, await self._in_executor(_read_part, directory)
        if directory.exists():
            await discard(directory)
        progress(f"Downloading the kernel {package.version}", None)
        deb = await self._apt.download(package, progress)
        async with staging(self._root) as stage:
            try:
                ready = await self._unpack_part(package, deb, stage, progress)
                await self._in_executor(publish, ready, directory)
            except (OSError, ProcessFailedError) as error:
                raise failed(error, "build the kernel bundle", self._root, _SPACE_NEEDED) from error
        await self._in_executor(self._apt.clean)
        return directory, _decode(directory / PART_NAME, PartInfo)

    async def _choose_package(self, progress: Progress) -> Package:
        """The newest cloud kernel: on Debian 12, 6.12 from its security archive before its own 6.1.

        Meta packages (`linux-image-cloud-amd64`, `linux-image-6.12-cloud-amd64`) name the real one.
        """
        suffix = re.escape(f"cloud-{debian_architecture()}")
        metas = await self._apt.packages(rf"linux-image-(\d+\.\d+-)?{suffix}", progress)
        for meta in sorted(metas, key=lambda p: _release_key(p.version), reverse=True):
            match = re.match(rf"(linux-image-\S+-{suffix})\b", meta.depends)
            if match is None:
                continue
            for package in await self._apt.packages(re.escape(match[1]), progress):
                return package
        raise UnsupportedError(
            "the host's Debian mirrors have no cloud kernel",
            next_step="add the release's main component to the host's apt sources",
        )

    async def _unpack_part(
        self, package: Package, deb: Path, stage: Path, progress: Progress
    ) -> Path:
        tree, ready = stage / "tree", stage / "ready"
        progress("Unpacking the kernel", None)
        await run(["dpkg-deb", "-x", deb, tree], env=build_environment(), deadline=_DEADLINE)
        release, lib = await self._in_executor(_find_release, tree)
        modules = lib / release
        (ready / "boot").mkdir(parents=True)
        progress("Unpacking the kernel's modules", None)
        await self._in_executor(unpack_modules, modules)
        base = stage / "depmod"
        (base / "lib/modules").mkdir(parents=True)
        modules.rename(base / "lib/modules" / release)
        modules = base / "lib/modules" / release
        await run(["depmod", "-b", base, release], env=build_environment(), deadline=_DEADLINE)
        loads = await self._in_executor(boot_modules, modules)
        network = await self._in_executor(boot_modules, modules, NETWORK_MODULES)
        # Some serve both; they are loaded once.
        network = [module for module in network if module not in loads]

        def copy() -> int:
            for module in (*loads, *network):
                shutil.copyfile(modules / module.path, ready / "boot" / f"{module.name}.ko")
            (tree / f"boot/vmlinuz-{release}").rename(ready / "vmlinuz")
            (tree / f"boot/config-{release}").rename(ready / "config")
            return allocated_bytes(*modules.rglob("*"))

        size = await self._in_executor(copy)
        progress("Making the module disk", None)
        await make_tree_disk(
            modules, ready / "modules.ext4", -(-(size + _MODULES_SLACK) // (1 << 20)) << 20,
            await _ownership(), self._executor,
        )  # fmt: skip
        pvh = await extract_vmlinux(ready / "vmlinuz", ready / "vmlinux", self._executor)

        def describe() -> None:
            info = PartInfo(
                format=FORMAT,
                package=package.name,
                version=package.version,
                release=release,
                built_at=time.time(),
                modules=[f"{module.name}.ko" for module in loads],
                network_modules=[f"{module.name}.ko" for module in network],
                pvh=pvh,
                kernel_sha256=digest_file(ready / ("vmlinux" if pvh else "vmlinuz")),
                modules_sha256=digest_sparse(ready / "modules.ext4"),
                sizes=_sizes(ready),
                written_at=_written_at(ready),
            )
            _encode(ready / PART_NAME, info)
            for path in ready.iterdir():
                if path.is_file():
                    path.chmod(0o400)

        await self._in_executor(describe)
        return ready

    # -- bundles -------------------------------------------------------------------------------

    async def _agent_digest(self, agent: Path) -> str:
        try:
            return await self._in_executor(digest_file, agent)
        except OSError as error:
            raise NotFoundError(
                f"there is no agent at {agent}",
                next_step="install vmgr anew, or build the agent with `./dev run` in a checkout",
            ) from error

    async def _build_bundle(
        self, part: Path, info: PartInfo, agent: Path, agent_sha256: str
    ) -> KernelBundle:
        def build(stage: Path) -> tuple[Path, Path]:
            ready = stage / "ready"
            ready.mkdir()
            initramfs = ready / "initramfs.cpio"
            with initramfs.open("xb") as file:
                _write_initramfs(file, agent.read_bytes(), part / "boot", info)
            for name in ("vmlinux", "vmlinuz", "modules.ext4"):
                with contextlib.suppress(FileNotFoundError):
                    _link_or_copy(part / name, ready / name)
            initramfs_sha256 = digest_file(initramfs)
            digest = _digest_of(info.kernel_sha256, initramfs_sha256, info.modules_sha256)
            bundle = BundleInfo(
                format=FORMAT,
                release=info.release,
                version=info.version,
                part=part.name,
                agent_sha256=agent_sha256,
                initramfs_sha256=initramfs_sha256,
                built_at=time.time(),
                sizes=_sizes(ready),
                written_at=_written_at(ready),
            )
            _encode(ready / BUNDLE_NAME, bundle)
            for path in ready.iterdir():
                path.chmod(0o400)
            return ready, self._directory(digest)

        async with staging(self._root) as stage:
            try:
                ready, target = await self._in_executor(build, stage)
                _, made = await publish_sound(ready, target, _read_bundle, self._executor)
            except OSError as error:
                raise failed(error, "write the initramfs", self._root) from error
        return made

    def _directory(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        if not _HEX.fullmatch(name):
            raise _no_bundle(digest)
        return self._root / name

    async def _in_executor(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        return await in_thread(self._executor, work, *args)


def _write_initramfs(file: IO[bytes], agent: bytes, boot: Path, info: PartInfo) -> None:
    """Write it uncompressed: it is small, and the guest's CPU may be an emulated one.

    The two device nodes are what the kernel and the agent need before devtmpfs is mounted.
    """
    archive = NewcWriter(file)
    for path in ("dev", "lib", "lib/modules", "proc", "root", "run", "sys"):
        archive.directory(path)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, mode=0o666)
    archive.file("init", agent, mode=0o755)
    for lists, modules in (
        ("modules.load", info.modules), ("modules.network", info.network_modules),
    ):  # fmt: skip
        for name in modules:
            archive.file(f"lib/modules/{name}", (boot / name).read_bytes())
        archive.file(lists, "".join(f"/lib/modules/{name}\n" for name in modules).encode())
    archive.close()


async def _ownership() -> Privilege:
    """What makes the files of the module disk root's: one id is enough for that."""
    if os.geteuid() == 0:
        return Privilege(PrivilegeKind.ROOT, (), 1, "")
    alone = ("unshare", "--user", "--map-root-user", "--")
    try:
        await run([*alone, "true"], env=build_environment(), deadline=_DEADLINE)
    except (OSError, ProcessFailedError):
        return await find_privilege()
    return Privilege(PrivilegeKind.SUBIDS, alone, 1, "")


def _find_release(tree: Path) -> tuple[str, Path]:
    for lib in (tree / "lib/modules", tree / "usr/lib/modules"):
        releases = [p.name for p in lib.iterdir()] if lib.is_dir() else []
        if len(releases) == 1 and (tree / f"boot/vmlinuz-{releases[0]}").is_file():
            return releases[0], lib
    raise StateError("the kernel package does not hold one kernel and its modules")


def _release_key(version: str) -> tuple[int, ...]:
    """The numbers that a package's version begins with: 6.12.117-1~deb12u1 is (6, 12, 117, 1)."""
    match = re.match(r"(?:\d+:)?([\d.]+)(?:-(\d+))?", version)
    if match is None:
        return ()
    return tuple(int(part) for part in f"{match[1]}.{match[2] or 0}".split(".") if part)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _encode(path: Path, value: msgspec.Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


S = TypeVar("S", bound=msgspec.Struct)


def _decode(path: Path, kind: type[S]) -> S:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_JSON_LIMIT), type=kind)
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StateError(f"{path} is damaged: {error}") from error


def _read_bundle(directory: Path) -> tuple[float, KernelBundle]:
    if not directory.is_dir():
        raise _no_bundle(f"sha256:{directory.name}")
    info = _decode(directory / BUNDLE_NAME, BundleInfo)
    if info.format != FORMAT:
        raise StateError(f"the kernel bundle {directory.name[:12]} is of another vmgr version")
    bzimage, vmlinux = directory / "vmlinuz", directory / "vmlinux"
    bundle = KernelBundle(
        release=info.release,
        version=info.version,
        directory=directory,
        digest=f"sha256:{directory.name}",
        kernel=vmlinux if vmlinux.is_file() else bzimage,
        bzimage=bzimage,
        initramfs=directory / "initramfs.cpio",
        modules=directory / "modules.ext4",
        agent_sha256=info.agent_sha256,
    )
    needed = {path.name for path in (bundle.kernel, bundle.initramfs, bundle.modules)}
    if damage := _damage(directory, needed, info.sizes):
        raise StateError(
            f"the kernel bundle {directory.name[:12]} is damaged: {damage}",
            next_step="it is built anew when a machine starts",
        )
    if _is_changed(directory, info.written_at):
        _check_content(bundle)
    return info.built_at, bundle


def _check_content(bundle: KernelBundle) -> None:
    """Compare what the files hold with what their digest says; a second's work, blocks.

    Raises:
        StateError: it is something else.
    """
    parts = (digest_file(bundle.kernel), digest_file(bundle.initramfs))
    if bundle.digest != _digest_of(*parts, digest_sparse(bundle.modules)):
        raise StateError(
            f"the kernel bundle {bundle.directory.name[:12]} is damaged: its files are not those "
            "that were written",
            next_step="it is built anew when a machine starts",
        )


def _distrust(bundle: KernelBundle) -> None:
    """Have whoever reads it next look at its content, and its part's: their times are another."""
    for path in (bundle.kernel, bundle.initramfs, bundle.modules):
        with contextlib.suppress(OSError):
            os.utime(path)


def _digest_of(kernel_sha256: str, initramfs_sha256: str, modules_sha256: str) -> str:
    parts = (kernel_sha256, initramfs_sha256, modules_sha256)
    return f"sha256:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}"


def _read_part(directory: Path) -> PartInfo:
    info = _decode(directory / PART_NAME, PartInfo)
    needed = {"vmlinuz", "modules.ext4", *(("vmlinux",) if info.pvh else ())}
    if damage := _damage(directory, needed, info.sizes):
        raise StateError(f"it is damaged: {damage}")
    if _is_changed(directory, info.written_at):
        kernel = digest_file(directory / ("vmlinux" if info.pvh else "vmlinuz"))
        modules = digest_sparse(directory / "modules.ext4")
        if (kernel, modules) != (info.kernel_sha256, info.modules_sha256):
            raise StateError("it is damaged: its files are not those that were written")
    return info


def _is_of_another_version(part: Path) -> bool:
    """Whether a part was made by a vmgr that knew another format."""
    try:
        return _decode(part / PART_NAME, _Versioned).format != FORMAT
    except VmgrError:
        return False  # damaged, which is another matter


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}


def _written_at(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir() if path.is_file()}


def _is_changed(directory: Path, written_at: dict[str, int]) -> bool:
    """Whether a file was written to after it was made, as far as its time tells.

    Somebody's copy of it has another time, too: only its content tells.
    """
    return any((directory / name).stat().st_mtime_ns != at for name, at in written_at.items())


def _damage(directory: Path, needed: set[str], sizes: dict[str, int]) -> str | None:
    """What is wrong with the files in `directory`, as far as their names and sizes tell."""
    for name in sorted(needed | sizes.keys()):
        path = directory / name
        if not path.is_file() or path.stat().st_size == 0:
            return f"{name} is missing"
        if not os.access(path, os.R_OK):
            return f"{name} cannot be read"
        if path.stat().st_size != sizes.get(name, path.stat().st_size):
            return f"{name} has another size"
    return None


def _freed(directory: Path) -> int:
    """Bytes on disk that only `directory` holds: files with further hard links stay."""
    paths = [p for p in directory.rglob("*") if p.is_file() and p.stat().st_nlink == 1]
    return allocated_bytes(*paths)


def _no_bundle(digest: str) -> NotFoundError:
    return NotFoundError(f"there is no kernel bundle {digest}")
