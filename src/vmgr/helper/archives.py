"""Snapshots in one file: out of here, and in from elsewhere.

The work is `vmgr.archive`'s; here it is decided what goes in and what becomes of what comes out.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vmgr.api.snapshots import SnapshotExport, SnapshotFile, SnapshotImport, SnapshotInfo
from vmgr.archive.packing import digests, pack, unpack
from vmgr.archive.target import NewFile, exists
from vmgr.artifact.faults import failed
from vmgr.artifact.sparse import move_file
from vmgr.artifact.staging import staging
from vmgr.artifact.threads import in_thread
from vmgr.errors import ConflictError, NotFoundError, UnsupportedError, UsageError, VmgrError
from vmgr.helper.arrivals import Arrival, read_arrival
from vmgr.image import adopted_metadata, base_of, stand_on
from vmgr.saved.files import write_record
from vmgr.snapshot import split_reference
from vmgr.snapshot.files import DISK, RECORD
from vmgr.spawner import ProcessFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmgr.archive.manifest import Manifest
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Services
    from vmgr.helper.snapshots import Snapshots
    from vmgr.image import Image
    from vmgr.snapshot import Snapshot

    Progress = Callable[[str, float | None], None]

__all__ = ["SnapshotArchives"]

_DROPPED: Final = ("resync_keys", "vmm_pid", "vmm_start_time", "interface", "status_reason")

log = logging.getLogger(__name__)


class SnapshotArchives:
    """Exports and imports snapshots."""

    def __init__(self, services: Services, helper: Helper, snapshots: Snapshots) -> None:
        self._services = services
        self._helper = helper
        self._snapshots = snapshots
        self._executor = services.executors.files
        self._exporting: list[str] = []
        self.images: list[tuple[str, str, int]] = []
        """What imports under way stand on, as `Snapshots.image_users` gives it."""
        self.kernels: list[str] = []

    def exporting(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is just being written to a file."""
        return snapshot.record.id in self._exporting

    # -- out ------------------------------------------------------------------------------------

    async def export(self, request: SnapshotExport, progress: Progress) -> SnapshotFile:
        """Write a snapshot to a file of the person's; it appears whole.

        Raises:
            NotFoundError: there is no such snapshot or directory.
            ConflictError: there is such a file, and `force` is not set.
            ResourceError: no space left.
        """
        snapshot = self._snapshots.get(request.snapshot)
        path = _absolute(request.path)
        with _listed(self._exporting, snapshot.record.id):
            image = await self._helper.images.resolve(snapshot.record.image_digest)
            base = base_of(image, snapshot.record.disk_bytes)
            files = await self._files(snapshot, image, base, without_image=request.without_image)
            try:
                target = NewFile(path, replace=request.force)
                try:
                    await in_thread(self._executor, _open_new, target, path, request.force)
                    async with staging(self._snapshots.files.root) as stage:
                        await pack(
                            files, base, target.fd,
                            work=stage, executor=self._executor, progress=progress,
                        )  # fmt: skip
                        size = await in_thread(self._executor, target.show)
                finally:
                    await in_thread(self._executor, target.close)
            except (OSError, ProcessFailedError) as error:
                raise failed(error, "export the snapshot", path.parent) from error
        return SnapshotFile(
            snapshot=snapshot.name, path=str(path), size_bytes=size, image="root.ext4" in files
        )

    async def _files(
        self, snapshot: Snapshot, image: Image, base: Path, *, without_image: bool
    ) -> dict[str, Path]:
        """What goes into the file, by its name there."""
        names = [RECORD, DISK]
        if snapshot.has_memory:
            names += ["saved.json", "devices", "memory"]
        files = {name: snapshot.directory / name for name in names}
        files["image.json"] = image.directory / "image.json"
        if without_image:
            return files
        files["root.ext4"] = base
        if snapshot.record.kernel_digest is not None:
            bundle = await self._helper.images.kernel_of(snapshot.record.kernel_digest)
            for path in (bundle.kernel, bundle.initramfs, bundle.modules):
                files[path.name] = path
            files["bundle.json"] = bundle.directory / "bundle.json"
        return files

    # -- in -------------------------------------------------------------------------------------

    async def import_(self, request: SnapshotImport, progress: Progress) -> SnapshotInfo:
        """Take a snapshot from a file; an image and a kernel that are here already are kept.

        Raises:
            NotFoundError: there is no such file.
            UsageError: it is no snapshot, or damaged.
            ConflictError: there is a snapshot of that name.
            UnsupportedError: it is of another architecture, or needs an image that is not here.
            ResourceError: no space left.
        """
        path = _absolute(request.path)
        wanted = None if request.name is None else split_reference(request.name)
        root = self._snapshots.files.root
        if wanted is not None:
            self._snapshots.check_free(*wanted)
        try:
            async with staging(root) as stage:
                files, ready = stage / "files", stage / "ready"

                def make() -> None:
                    files.mkdir(mode=0o700)
                    ready.mkdir(mode=0o700)

                await in_thread(self._executor, make)
                manifest = await unpack(path, files, self._executor, progress)
                with _naming(path), contextlib.ExitStack() as stack:
                    arrival = await in_thread(self._executor, read_arrival, files, manifest)
                    name = wanted or (arrival.record.machine, arrival.record.tag)
                    stack.enter_context(self._snapshots.making(*name))
                    image = await self._image(files, manifest, arrival, path, stack)
                    await self._kernel(files, manifest, arrival, stack)
                    await in_thread(
                        self._executor, _lay_out, files, ready, arrival,
                        base_of(image, arrival.record.disk_bytes),
                    )  # fmt: skip
                    row: dict[str, Any] = msgspec.to_builtins(
                        msgspec.structs.replace(
                            arrival.row, image_digest=image.digest, name=name[0]
                        )
                    )
                    for gone in _DROPPED:
                        row.pop(gone)
                    record = msgspec.structs.replace(
                        arrival.record,
                        machine=name[0], tag=name[1], image_digest=image.digest, row=row,
                    )  # fmt: skip
                    snapshot = await self._snapshots.files.publish(ready, record)
        except OSError as error:
            raise failed(error, "import the snapshot", root) from error
        log.info("snapshot %s: imported, on the image %s", snapshot.name, image.digest)
        return self._snapshots.shown(snapshot)

    async def _image(
        self,
        files: Path,
        manifest: Manifest,
        arrival: Arrival,
        path: Path,
        stack: contextlib.ExitStack,
    ) -> Image:
        """The image that the disk stands on: one that is here, else the one that came along."""
        images = self._helper.images
        metadata = await in_thread(
            self._executor, adopted_metadata, files, manifest.base_digest, arrival.base_bytes,
            f"snapshot:{path.name}",
        )  # fmt: skip
        async with images.keeping:
            image = await self._same(arrival, manifest)
            if image is None:
                image = await images.of_digest(metadata.digest())
            if image is None:
                if not manifest.has("root.ext4"):
                    raise UnsupportedError(
                        "it was exported without its image, and this computer does not have the"
                        " same one",
                        next_step="export it again, with its image",
                    )
                (found,) = [m for m in manifest.members if m.name == "root.ext4"]
                if found.digest != manifest.base_digest:
                    raise UsageError("its image is not the one that its disk stands on")
                image = await images.adopt(files, metadata)
            user = (f"snapshot {arrival.record.machine}:{arrival.record.tag}", image.digest)
            stack.enter_context(_listed(self.images, (*user, arrival.record.disk_bytes)))
        return image

    async def _same(self, arrival: Arrival, manifest: Manifest) -> Image | None:
        """The image of that digest if it is here and has, byte for byte, that file system."""
        image = await self._helper.images.of_digest(arrival.record.image_digest)
        if image is None:
            return None
        base = base_of(image, arrival.record.disk_bytes)
        if not await in_thread(self._executor, base.exists):
            return None
        (found,) = await digests([base], lambda _part: None)
        return image if found.digest == manifest.base_digest else None

    async def _kernel(
        self, files: Path, manifest: Manifest, arrival: Arrival, stack: contextlib.ExitStack
    ) -> None:
        """See that the kernel which the memory goes on with is here."""
        digest = arrival.record.kernel_digest
        if digest is None:
            return
        async with self._helper.images.keeping:
            try:
                await self._helper.images.kernel_of(digest)
            except VmgrError:
                needed = ("bundle.json", "initramfs.cpio", "modules.ext4")
                if not all(manifest.has(name) for name in needed):
                    raise UnsupportedError(
                        "it was exported without its kernel, and this computer does not have the"
                        " same one",
                        next_step="export it again, with its image",
                    ) from None
                await self._helper.images.adopt_kernel(files, digest)
            stack.enter_context(_listed(self.kernels, digest))


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text or not path.name:
        raise UsageError(f"{text[:200]!r} is not an absolute path to a file")
    return path


def _open_new(target: NewFile, path: Path, replace: bool) -> None:  # noqa: FBT001 (a thread's call)
    if path.is_dir():
        raise UsageError(f"{path} is a directory", next_step="name a file in it")
    if not replace and (path.exists() or path.is_symlink()):
        raise exists(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file")
    try:
        target.open()
    except FileNotFoundError:
        raise NotFoundError(f"there is no directory {path.parent}") from None


def _lay_out(files: Path, ready: Path, arrival: Arrival, base: Path) -> None:
    """Make the snapshot's directory of what came."""
    stand_on(files / DISK, base, arrival.base_bytes)
    move_file(files / DISK, ready / DISK)
    if arrival.saved is not None:
        for name in ("memory", "devices"):
            move_file(files / name, ready / name)
        write_record(ready, arrival.saved)


@contextlib.contextmanager
def _listed(names: list[Any], name: Any) -> Iterator[None]:
    """Have `name` in a list for as long as this lasts; it may be in there several times."""
    names.append(name)
    try:
        yield
    finally:
        names.remove(name)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it is that is wrong; names that are taken speak for themselves."""
    try:
        yield
    except ConflictError:
        raise
    except (UsageError, UnsupportedError) as error:
        raise type(error)(
            f"{path} cannot be imported: {error.message}",
            next_step=error.next_step,
            details=error.details,
        ) from error
