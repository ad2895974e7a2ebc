"""Images and kernel bundles as the helper sees them: names, sharing of work, who uses what.

The files are `vmgr.image`'s and `vmgr.kernel`'s; the names are in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING, Final

from vmgr.api.models import ImageBuild, ImageImport, ImageInfo, ImageRemoved
from vmgr.errors import ConflictError, NotFoundError, UsageError, VmgrError
from vmgr.helper.sharedwork import SharedWork
from vmgr.image import RECIPES, Image, ImageFiles, remove_unused_bases
from vmgr.kernel import KernelBundle, KernelFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from vmgr.helper.machine import Services
    from vmgr.image import Metadata

    Progress = Callable[[str, float | None], None]

__all__ = ["ImageService"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9._-]{1,64})?")
_DIGEST_PREFIX: Final = re.compile(r"(sha256:)?([0-9a-f]{4,64})")

log = logging.getLogger(__name__)


class ImageService:
    """Everything about images that requests ask for.

    Args:
        users: gives machines' names, the digests of their images and their disks' sizes.
        kernel_users: gives the digests of the kernel bundles that saved machines go on with.
    """

    def __init__(
        self,
        services: Services,
        find_agent: Callable[[], Path],
        users: Callable[[], Iterable[tuple[str, str, int]]],
        kernel_users: Callable[[], Iterable[str]],
    ) -> None:
        self._executors = services.executors
        self._store = services.store
        self._events = services.events
        self._find_agent = find_agent
        self._users = users
        self._kernel_users = kernel_users
        self._files = ImageFiles(services.paths, services.executors.files)
        self._kernels = KernelFiles(services.paths, services.executors.files)
        self._shared = SharedWork()
        self._kernel: KernelBundle | None = None
        self._removing: set[str] = set()
        self.keeping = asyncio.Lock()
        """Held while unused things are removed, and by who has just made one and not used it."""

    # -- looking ---------------------------------------------------------------------------

    async def infos(self) -> list[ImageInfo]:
        """All images, by their first name."""
        names = await self._names_by_digest()
        infos = [self._info(image, names) for image in await self._files.list()]
        return sorted(infos, key=lambda i: (not i.names, i.names, i.digest))

    async def info(self, reference: str) -> ImageInfo:
        """One image."""
        return self._info(await self.resolve(reference), await self._names_by_digest())

    async def resolve(self, reference: str) -> Image:
        """The image that a name or a prefix of a digest means.

        Raises:
            NotFoundError: there is none; `details["recipe"]` when it could be built.
            UsageError: the prefix is ambiguous, or it is neither.
        """
        names = await self._executors.in_store(self._store.image_names)
        if (digest := names.get(reference)) is not None and digest not in self._removing:
            return await self._files.get(digest)
        if match := _DIGEST_PREFIX.fullmatch(reference):
            found = [
                image
                for image in await self._files.list()
                if image.digest.removeprefix("sha256:").startswith(match[2])
                and image.digest not in self._removing
            ]
            if len(found) > 1:
                raise UsageError(
                    f"{reference} is the beginning of {len(found)} images' digests",
                    next_step="give more of its digits",
                )
            if found:
                return found[0]
        elif not _NAME.fullmatch(reference):
            raise UsageError(
                f"{reference!r} is not an image's name or digest", next_step="see: vmgr image ls"
            )
        if reference in RECIPES:
            raise NotFoundError(
                f"there is no image named {reference} yet",
                next_step=f"build it with: vmgr image build {reference}",
                details={"recipe": reference},
            )
        raise NotFoundError(
            f"there is no image named {reference}",
            next_step="see those there are with: vmgr image ls",
        )

    # -- making ---------------------------------------------------------------------------

    async def build(self, request: ImageBuild, progress: Progress) -> ImageInfo:
        """Build an image; two requests for the same recipe share the work."""
        if request.recipe not in RECIPES:
            raise UsageError(
                f"there is no recipe {request.recipe!r}",
                next_step=f"take one of: {', '.join(sorted(RECIPES))}",
            )
        name = _check_name(request.name or request.recipe)
        names = await self._executors.in_store(self._store.image_names)
        if not request.force and name in names:
            return await self.info(name)

        async def work(tell: Progress) -> Image:
            return await self._files.build(request.recipe, tell)

        image = await self._shared.do(f"build {request.recipe}", work, progress)
        await self.kernel(progress)
        return await self._named(name, image)

    async def ensure(self, reference: str, progress: Progress) -> Image:
        """The image, built first when it is missing and has a recipe."""
        try:
            return await self.resolve(reference)
        except NotFoundError as error:
            if (recipe := error.details.get("recipe")) is None:
                raise
            await self.build(ImageBuild(recipe=recipe), progress)
            return await self.resolve(reference)

    async def import_tarball(self, request: ImageImport, progress: Progress) -> ImageInfo:
        """Make an image of a root file system tarball."""
        name = _check_name(request.name)
        image = await self._files.import_tarball(request, progress)
        return await self._named(name, image)

    async def adopt(self, files: Path, metadata: Metadata) -> Image:
        """An image of a file system that came with a snapshot; it has no name."""
        return await self._files.adopt(files, metadata)

    async def of_digest(self, digest: str) -> Image | None:
        """The image of that digest, if it is there and sound."""
        try:
            return None if digest in self._removing else await self._files.get(digest)
        except VmgrError:
            return None

    async def adopt_kernel(self, files: Path, digest: str) -> KernelBundle:
        """A kernel bundle that came with a snapshot."""
        return await self._kernels.adopt(files, digest)

    async def kernel(self, progress: Progress) -> KernelBundle:
        """The kernel bundle that machines start with, built or completed first where needed."""
        if self._kernel is not None:
            # It is a cache: others may have emptied it, or the disk was full.
            with contextlib.suppress(VmgrError):
                return await self._kernels.get(self._kernel.digest)

        async def work(tell: Progress) -> KernelBundle:
            return await self._kernels.ensure(self._find_agent(), tell)

        self._kernel = await self._shared.do("kernel", work, progress)
        return self._kernel

    async def kernel_of(self, digest: str) -> KernelBundle:
        """The bundle that a saved machine goes on with.

        Raises:
            VmgrError: it is not there any more.
        """
        return await self._kernels.get(digest)

    async def newest_kernel(self) -> KernelBundle | None:
        """A kernel bundle that is there, if any."""
        if self._kernel is None:
            bundles = await self._kernels.list()
            return bundles[-1] if bundles else None
        return self._kernel

    # -- removing ---------------------------------------------------------------------------

    async def remove(self, reference: str) -> ImageRemoved:
        """Remove an image's name, and the image when that was its last.

        Raises:
            ConflictError: machines use it.
        """
        image = await self.resolve(reference)
        names = (await self._names_by_digest()).get(image.digest, [])
        if reference in names and len(names) > 1:
            await self._executors.in_store(self._store.unname_image, reference)
            return ImageRemoved(removed=[reference], freed_bytes=0)
        if users := self._used_by(image.digest):
            raise ConflictError(
                f"the image {reference} is in use by {', '.join(users)}",
                next_step="remove those first",
            )
        # From here on nobody can begin to use it: a machine is known before it waits for its disk.
        self._removing.add(image.digest)
        try:
            for name in names:
                await self._executors.in_store(self._store.unname_image, name)
            freed = await self._files.remove(image.digest)
        finally:
            self._removing.discard(image.digest)
        self._events.publish("image.removed", digest=image.digest, names=names)
        return ImageRemoved(removed=[*names, image.digest], freed_bytes=freed)

    async def prune(self) -> ImageRemoved:
        """Remove images that have no name and no machine, and kernel bundles that nothing uses."""
        async with self.keeping:
            return await self._prune()

    async def _prune(self) -> ImageRemoved:
        names = await self._names_by_digest()
        removed: list[str] = []
        freed = 0
        for image in await self._files.list():
            sizes = [size for _, used, size in self._users() if used == image.digest]
            bases, space = await self._executors.in_files(remove_unused_bases, image, sizes)
            removed += bases
            freed += space
        for image in await self._files.list():
            if image.digest not in names and not self._used_by(image.digest):
                freed += await self._files.remove(image.digest)
                removed.append(image.digest)
        current = await self.kernel(lambda _message, _fraction: None)
        kept = {current.digest, *self._kernel_users()}
        for bundle in await self._kernels.list():
            # A running VMM keeps its kernel's files open; the page cache does not need their names.
            if bundle.digest not in kept:
                freed += await self._kernels.remove(bundle.digest)
                removed.append(bundle.digest)
        freed += await self._kernels.prune()
        return ImageRemoved(removed=removed, freed_bytes=freed)

    async def reconcile(self) -> None:
        """Remove what interrupted builds left; give back names that a damaged database lost."""
        for residue in (self._files.remove_residue, self._kernels.remove_residue):
            for line in await residue():
                log.info("removed residue: %s", line)
        names = await self._executors.in_store(self._store.image_names)
        images = {image.digest: image for image in await self._files.list()}
        for name, digest in names.items():
            if digest not in images:
                log.warning("the image %s (%s) has gone from disk", name, digest)
                await self._executors.in_store(self._store.unname_image, name)
        named = set(names.values())
        for image in sorted(images.values(), key=lambda i: i.created_at):
            recipe = image.source.removeprefix("recipe:")
            if image.digest not in named and recipe in RECIPES and recipe not in names:
                await self._executors.in_store(self._store.name_image, recipe, image.digest)

    # -- machinery ---------------------------------------------------------------------------

    async def _named(self, name: str, image: Image) -> ImageInfo:
        await self._executors.in_store(self._store.name_image, name, image.digest)
        self._events.publish("image.added", digest=image.digest, name=name)
        return await self.info(name)

    async def _names_by_digest(self) -> dict[str, list[str]]:
        by_digest: dict[str, list[str]] = {}
        for name, digest in (await self._executors.in_store(self._store.image_names)).items():
            by_digest.setdefault(digest, []).append(name)
        return by_digest

    def _used_by(self, digest: str) -> list[str]:
        return sorted(machine for machine, used, _ in self._users() if used == digest)

    def _info(self, image: Image, names: dict[str, list[str]]) -> ImageInfo:
        return ImageInfo(
            digest=image.digest,
            names=names.get(image.digest, []),
            source=image.source,
            created_at=image.created_at,
            size_bytes=image.size_bytes,
            init=image.init,
            default_user=image.default_user,
            env=image.env,
            entrypoint=image.entrypoint,
            architecture=image.architecture,
            used_by=self._used_by(image.digest),
        )


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or re.fullmatch(r"[0-9a-f]{12,64}", name):
        raise UsageError(
            f"{name!r} is not a name for an image",
            next_step="use lower-case letters, digits and . _ - /, a letter or digit first",
        )
    return name
