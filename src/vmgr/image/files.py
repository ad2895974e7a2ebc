"""The directory of images: listing, building, importing, removing, and disks made from them.

`images/HEX/` holds one image: `root.ext4` (the file system, of the default disk size, sparse) and
`image.json`; besides, `root-BYTES.ext4` for each other disk size that machines have had; those
can be made again at any time. HEX is the image's digest. Images' names are not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import msgspec

from vmgr.artifact.apt import Apt
from vmgr.artifact.ext4 import make_root, minimum_size, set_capabilities
from vmgr.artifact.faults import failed, human_size, require_space
from vmgr.artifact.privilege import Privilege, find_privilege
from vmgr.artifact.sparse import allocated_bytes
from vmgr.artifact.staging import (
    discard,
    publish_sound,
    remove_residue,
    residue,
    settle,
    staging,
)
from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import require
from vmgr.errors import NotFoundError, StateError, UnsupportedError, UsageError, VmgrError
from vmgr.image.adopting import adopt
from vmgr.image.bootstrap import SPACE_NEEDED, bootstrap
from vmgr.image.compression import DECOMPRESSION_ERRORS, open_tarball
from vmgr.image.model import (
    DEFAULT_DISK_BYTES,
    DISK_NAME,
    METADATA_LIMIT,
    METADATA_NAME,
    METADATA_VERSION,
    Image,
    Metadata,
)
from vmgr.image.recipes import RECIPES, AddedFile, AddedLink, additions
from vmgr.image.tarball import Contents, Limits, clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor
    from typing import IO

    from vmgr.api.models import ImageImport
    from vmgr.artifact import Progress
    from vmgr.image.forward import Readable
    from vmgr.paths import Paths

__all__ = ["ImageFiles"]

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_MAX_CONTENT: Final = DEFAULT_DISK_BYTES * 3 // 4
_RESERVE: Final = 256 << 20  # kept free on the host while importing
_BYTES_PER_STEP: Final = 4 << 20
Names = list[str]  # `list` is a method below
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_log = logging.getLogger(__name__)
_metadata_decoder = msgspec.json.Decoder(Metadata)


class ImageFiles:
    """The images of one user.

    Args:
        paths: `paths.images` is the directory.
        executor: for reading and writing files; needs at least two threads.
    """

    def __init__(self, paths: Paths, executor: Executor) -> None:
        self._root = paths.images
        self._executor = executor
        self._apt = Apt(paths, executor)
        self._privilege: Privilege | None = None

    async def list(self) -> list[Image]:
        """All images, oldest first. Damaged ones are skipped, and the log says why."""

        def read_all() -> list[Image]:
            images = []
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(self._root):
                    if not _HEX.fullmatch(entry.name):
                        continue
                    try:
                        images.append(_read_image(Path(entry.path)))
                    except VmgrError as error:
                        _log.warning("skipping the image %s: %s", entry.name[:12], error.message)
            return sorted(images, key=lambda image: (image.created_at, image.digest))

        return await self._in_executor(read_all)

    async def get(self, digest: str) -> Image:
        """The image with that digest (`sha256:HEX`).

        Raises:
            NotFoundError: there is none.
            StateError: its files are damaged.
        """
        return await self._in_executor(_read_image, self._directory(digest))

    async def build(self, recipe: str, progress: Progress) -> Image:
        """Build an image from one of `RECIPES`.

        Raises:
            NotFoundError: there is no such recipe.
            UnsupportedError: a tool or a Debian mirror is missing.
            ResourceError: no space left.
            VmgrError: the mirror cannot be reached, or a step failed.
        """
        if recipe not in RECIPES:
            raise NotFoundError(
                f"there is no recipe called {recipe!r}",
                next_step=f"use one of: {', '.join(sorted(RECIPES))}",
            )
        plan = RECIPES[recipe]
        require("mmdebstrap", "mke2fs", "resize2fs", "tar")
        privilege = await self._find_privilege()
        require_space(self._root, SPACE_NEEDED)
        sources = await self._apt.sources(progress)
        options = await self._apt.fetch_options()
        async with staging(self._root, privilege) as stage:
            work, tar = stage / "work", stage / "root.tar"
            work.mkdir()
            await bootstrap(
                plan, sources, options,
                target=tar, work=work, privilege=privilege, progress=progress,
            )  # fmt: skip
            progress("Making the file system", 0.92)
            with tar.open("rb") as stream:
                contents = await self._lay_out(
                    stage, stream, f"the recipe {recipe}", privilege,
                    drop=plan.drop, add=additions(plan, sources),
                )  # fmt: skip
            tar.unlink()
            return await self._finish(
                stage, contents, progress,
                source=f"recipe:{recipe}", init=contents.find_init() if plan.systemd else None,
                default_user="root", env=plan.env, entrypoint=[],
            )  # fmt: skip

    async def import_tarball(self, request: ImageImport, progress: Progress) -> Image:
        """Make an image from a root file system tarball.

        Raises:
            NotFoundError: there is no such file.
            UsageError: it is damaged, dangerous, for another architecture, or no root file system.
            ResourceError: no space left.
        """
        path = Path(request.path)
        if not path.is_absolute():
            raise UsageError(f"{request.path!r} is not an absolute path")
        require("mke2fs", "resize2fs", "tar")
        privilege = await self._find_privilege()
        async with open_tarball(path) as stream, staging(self._root, privilege) as stage:
            size = (await self._in_executor(path.stat)).st_size
            progress(f"Reading {path.name}", 0.0)
            counted = _CountingReader(stream, path.name, size, progress)
            contents = await self._lay_out(stage, counted, path.name, privilege)
            architecture = contents.architecture()
            if architecture != os.uname().machine:
                raise UsageError(
                    f"{path.name} is a system for {architecture}, but this host runs"
                    f" {os.uname().machine}",
                    next_step=f"import a root file system for {os.uname().machine}",
                )
            init = contents.find_init() if request.init is None else (request.init or None)
            if init is not None and not (init.startswith("/") and contents.has_program(init)):
                raise UsageError(
                    f"{path.name} has no program {init} that could be its init",
                    next_step="name one that it has, or leave it to vmgr to find one",
                )
            return await self._finish(
                stage, contents, progress,
                source=f"tarball:{path.name}", init=init, default_user=request.default_user,
                env=request.env, entrypoint=request.entrypoint,
            )  # fmt: skip

    async def adopt(self, files: Path, metadata: Metadata) -> Image:
        """Make an image of a file system that came from elsewhere, see `vmgr.image.adopting`."""
        return await adopt(self._root, files, metadata, _read_image, self._executor)

    async def remove(self, digest: str) -> int:
        """Remove an image; gives the bytes that this freed. Machines made from it must be gone.

        Raises:
            NotFoundError: there is none.
        """
        directory = self._directory(digest)
        freed = await self._in_executor(_allocated, directory)
        try:
            await discard(directory)
        except FileNotFoundError:
            raise _no_image(digest) from None
        return freed

    async def remove_residue(self) -> Names:
        """Remove what builds of dead processes left half-made; gives the names."""
        privilege = None
        if residue(self._root):
            with contextlib.suppress(UnsupportedError):
                privilege = await self._find_privilege()
        return await remove_residue(self._root, privilege)

    async def _lay_out(
        self,
        stage: Path,
        stream: Readable,
        label: str,
        privilege: Privilege,
        *,
        drop: Sequence[str] = (),
        add: Iterable[AddedFile | AddedLink] = (),
    ) -> Contents:
        """Make `stage/root.ext4` of a tar stream, through `clean`."""
        tree = stage / "tree"
        tree.mkdir()
        free = os.statvfs(stage)
        room = max(0, free.f_bavail * free.f_frsize - _RESERVE)
        # The tree and the file system made from it are both there for a while.
        limits = Limits(min(_MAX_CONTENT, room // 2), privilege.ids)
        read, write = os.pipe2(os.O_CLOEXEC)

        def feed() -> Contents:
            with open(write, "wb", buffering=1 << 18) as pipe:  # noqa: PTH123 (an fd, not a path)
                return clean(stream, pipe, label, limits, drop=drop, add=add)

        feeding = asyncio.create_task(self._in_executor(feed), name="feed tar")
        try:
            await make_root(
                read,
                tree,
                stage / DISK_NAME,
                DEFAULT_DISK_BYTES,
                privilege=privilege,
                executor=self._executor,
            )
        except VmgrError as error:
            problem: VmgrError | None = error
        else:
            problem = None
        finally:
            # With the reading end gone, the feeder ends too, whatever it is at.
            os.close(read)
            await settle(_end_of(feeding))
            outcome = feeding.exception() or feeding.result()
        # What was wrong with the input explains what tar then said about its broken-off stream.
        if isinstance(outcome, VmgrError):
            raise outcome
        if isinstance(outcome, DECOMPRESSION_ERRORS):
            raise UsageError(f"{label} is damaged: {outcome}") from outcome
        if isinstance(outcome, OSError) and not isinstance(outcome, BrokenPipeError):
            if outcome.errno is None:  # bz2 says so
                raise UsageError(f"{label} is damaged: {outcome}") from outcome
            raise failed(outcome, f"read {label}", stage) from outcome
        if problem is not None:
            raise problem
        if isinstance(outcome, BaseException):
            raise outcome
        work = stage / "capabilities"
        work.mkdir()
        await set_capabilities(stage / DISK_NAME, outcome.capabilities, work)
        return outcome

    async def _finish(
        self,
        stage: Path,
        contents: Contents,
        progress: Progress,
        *,
        source: str,
        init: str | None,
        default_user: str,
        env: dict[str, str],
        entrypoint: Names,
    ) -> Image:
        """Write the metadata of what is in `stage`, and show it under its digest."""
        disk = stage / DISK_NAME
        progress("Saving the image", 0.97)
        metadata = Metadata(
            version=METADATA_VERSION,
            source=source,
            created_at=time.time(),
            init=init,
            default_user=default_user,
            env=dict(env),
            entrypoint=[*entrypoint],
            architecture=contents.architecture(),
            content_digest=contents.digest,
            disk_bytes=DEFAULT_DISK_BYTES,
            minimum_disk_bytes=await minimum_size(disk),
        )
        target = self._root / metadata.digest().removeprefix("sha256:")
        # One level down, so that the tree's remains stay behind in the staging directory.
        ready = stage / "ready"

        def show() -> None:
            ready.mkdir(mode=0o700)
            disk.chmod(0o400)
            disk.rename(ready / DISK_NAME)
            body = msgspec.json.format(msgspec.json.encode(metadata), indent=2)
            (ready / METADATA_NAME).write_bytes(body + b"\n")
            (ready / METADATA_NAME).chmod(0o400)

        try:
            await self._in_executor(show)
            return await publish_sound(ready, target, _read_image, self._executor)
        except OSError as error:
            raise failed(error, "save the image", self._root) from error

    async def _find_privilege(self) -> Privilege:
        if self._privilege is None:
            self._privilege = await find_privilege()
        return self._privilege

    def _directory(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        if not _HEX.fullmatch(name):
            raise _no_image(digest)
        return self._root / name

    async def _in_executor(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        return await in_thread(self._executor, work, *args)


async def _end_of(task: asyncio.Task[Contents]) -> None:
    await asyncio.wait([task])


class _CountingReader:
    """Tells how much of a stream has been read; its compressed size is a guess at the whole."""

    def __init__(self, stream: IO[bytes], label: str, size: int, progress: Progress) -> None:
        self._stream = stream
        self._label = label
        self._size = size
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._done = 0
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        part = self._stream.read(size)
        self._done += len(part)
        if self._done - self._told >= _BYTES_PER_STEP:
            self._told = self._done
            fraction = min(0.9, self._done / max(self._size, 1) * 0.9)
            self._loop.call_soon_threadsafe(
                self._progress, f"Reading {self._label}: {human_size(self._done)}", fraction
            )
        return part


def _read_image(directory: Path) -> Image:
    try:
        with (directory / METADATA_NAME).open("rb") as file:
            metadata = _metadata_decoder.decode(file.read(METADATA_LIMIT))
    except FileNotFoundError:
        if not directory.exists():
            raise _no_image(f"sha256:{directory.name}") from None
        raise _damaged(directory, "it has no metadata") from None
    except OSError as error:
        raise _damaged(directory, f"its metadata cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise _damaged(directory, f"its metadata is not valid: {error}") from error
    if metadata.version != METADATA_VERSION:
        raise _damaged(directory, f"its metadata has the unknown version {metadata.version}")
    if metadata.digest() != f"sha256:{directory.name}":
        raise _damaged(directory, "its metadata does not belong to its name")
    try:
        size = (directory / DISK_NAME).stat().st_size
    except OSError as error:
        raise _damaged(directory, f"its disk cannot be read: {error.strerror}") from error
    if size != metadata.disk_bytes:
        raise _damaged(directory, f"its disk has {size} bytes instead of {metadata.disk_bytes}")
    return Image.of(directory, metadata, _allocated(directory))


def _allocated(directory: Path) -> int:
    return allocated_bytes(*directory.iterdir()) if directory.is_dir() else 0


def _no_image(digest: str) -> NotFoundError:
    return NotFoundError(f"there is no image {digest}", next_step="see `vmgr image ls`")


def _damaged(directory: Path, why: str) -> StateError:
    return StateError(
        f"the image {directory.name[:12]} is damaged: {why}",
        next_step=f"remove it with `vmgr image rm {directory.name[:12]}` and build it again",
        details={"directory": str(directory)},
    )
