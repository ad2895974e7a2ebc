"""Taking over a kernel bundle that came with a snapshot from elsewhere.

A bundle's digest is over the very bytes that a machine gets, so one from a stranger is what its
name says, or is refused. What else it claims (its agent, its age) is not taken over: with it, it
could pass for the bundle that new machines start with.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.artifact.sparse import digest_file, digest_sparse, move_file
from vmgr.artifact.staging import publish_sound, staging
from vmgr.artifact.strangers import decode_json
from vmgr.artifact.threads import in_thread
from vmgr.errors import UnsupportedError, UsageError
from vmgr.kernel.model import BUNDLE_NAME, FORMAT, BundleInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["adopt"]

_TEXT: Final = 200


async def adopt(
    root: Path, files: Path, digest: str, read: Callable[[Path], T], executor: Executor
) -> T:
    """Make a bundle of the files in `files`; one that is there is kept.

    Args:
        root: the directory of kernels.
        digest: what it must be, `sha256:HEX`.
        read: reads a bundle's directory.

    Raises:
        UsageError: it is another one, or damaged.
        UnsupportedError: it is of another version of vmgr.
        OSError: it cannot be moved to its place.
    """
    names = ("vmlinux", "vmlinuz")

    def look() -> BundleInfo:
        try:
            info = decode_json((files / BUNDLE_NAME).read_bytes(), BundleInfo)
        except ValueError:
            raise UsageError("its kernel's description is damaged") from None
        if info.format != FORMAT:
            raise UnsupportedError("its kernel is of another version of vmgr")
        # Only what the digest covers is taken over.
        kernel = next((files / name for name in names if (files / name).exists()), None)
        if kernel is None:
            raise UsageError("it has no kernel")
        initramfs_sha256 = digest_file(files / "initramfs.cpio")
        parts = (digest_file(kernel), initramfs_sha256, digest_sparse(files / "modules.ext4"))
        if hashlib.sha256("\n".join(parts).encode()).hexdigest() != digest.partition(":")[2]:
            raise UsageError("its kernel is not the one that it names")
        kept = [kernel.name, "initramfs.cpio", "modules.ext4"]
        return BundleInfo(
            format=FORMAT,
            release=info.release[:_TEXT],
            version=info.version[:_TEXT],
            part="",
            agent_sha256="",
            initramfs_sha256=initramfs_sha256,
            built_at=0.0,
            sizes={name: (files / name).stat().st_size for name in kept},
        )

    info = await in_thread(executor, look)
    async with staging(root) as stage:
        ready = stage / "ready"

        def move() -> None:
            ready.mkdir(mode=0o700)
            for name in info.sizes:
                move_file(files / name, ready / name)
            (ready / BUNDLE_NAME).write_bytes(msgspec.json.encode(info))
            for path in ready.iterdir():
                path.chmod(0o400)

        await in_thread(executor, move)
        return await publish_sound(ready, root / digest.removeprefix("sha256:"), read, executor)
