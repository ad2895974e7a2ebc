"""Taking over an image whose file system came ready-made, with a snapshot from elsewhere.

An image that is built or imported here is named by the files in it. That its file system holds just
those files cannot be seen from outside, so one from a stranger never gets that name: it is named by
the bytes of its file system instead. Whoever has such an image has exactly these bytes.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.artifact.sparse import move_file
from vmgr.artifact.staging import publish_sound, staging
from vmgr.artifact.strangers import decode_json
from vmgr.artifact.threads import in_thread
from vmgr.errors import UnsupportedError, UsageError
from vmgr.image.model import DISK_NAME, METADATA_LIMIT, METADATA_NAME, METADATA_VERSION, Metadata

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from vmgr.image.model import Image

__all__ = ["adopt", "adopted_metadata", "check_metadata"]

_PATH: Final = re.compile(r"/[A-Za-z0-9._/+-]{1,200}")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}(:[A-Za-z0-9_.-]{1,64})?")
_VARIABLES: Final = 1_000
_TEXT: Final = 32_768


def check_metadata(init: str | None, user: str, env: dict[str, str]) -> None:
    """See that what says how a machine of a stranger's image starts is plain.

    Raises:
        UsageError: it is not.
    """
    if init is not None and not _PATH.fullmatch(init):
        raise UsageError("its init is not a path")
    if not _USER.fullmatch(user):
        raise UsageError("its default user is not a user's name")
    if len(env) > _VARIABLES or any(
        not name or "=" in name or "\0" in name + value or len(name) + len(value) > _TEXT
        for name, value in env.items()
    ):
        raise UsageError("its environment is not one")


def adopted_metadata(files: Path, digest: str, size_bytes: int, source: str) -> Metadata:
    """What an image made of `image.json` in `files` and a file system is; blocks.

    Args:
        digest: of that file system.
        size_bytes: of it.
        source: where it came from.

    Raises:
        UsageError: it cannot be an image.
        UnsupportedError: it is for another architecture or version.
        OSError: the description cannot be read.
    """
    with (files / METADATA_NAME).open("rb") as file:
        text = file.read(METADATA_LIMIT)
    try:
        claimed = decode_json(text, Metadata)
    except ValueError:
        raise UsageError("its image's description is damaged") from None
    if claimed.version != METADATA_VERSION:
        raise UnsupportedError("its image is of another version of vmgr")
    if claimed.architecture != os.uname().machine:
        raise UnsupportedError(
            f"it is of a machine for {claimed.architecture[:40]!r}, but this host runs"
            f" {os.uname().machine}"
        )
    check_metadata(claimed.init, claimed.default_user, claimed.env)
    if any("\0" in word or len(word) > _TEXT for word in claimed.entrypoint):
        raise UsageError("its entry point is not a command")
    if not 0 < claimed.minimum_disk_bytes <= size_bytes:
        raise UsageError("its image's description is damaged")
    return msgspec.structs.replace(
        claimed, source=source, content_digest=f"{DISK_NAME}:{digest}", disk_bytes=size_bytes
    )


async def adopt(
    root: Path, files: Path, metadata: Metadata, read: Callable[[Path], Image], executor: Executor
) -> Image:
    """Make an image of `root.ext4` in `files`; one that is there is kept.

    Args:
        root: the directory of images.
        metadata: of `adopted_metadata`, with the digest that was found for it.
        read: reads an image's directory.

    Raises:
        UsageError: it is of another size.
        OSError: it cannot be moved to its place.
    """
    target = root / metadata.digest().removeprefix("sha256:")
    async with staging(root) as stage:
        ready = stage / "ready"

        def move() -> None:
            if (files / DISK_NAME).stat().st_size != metadata.disk_bytes:
                raise UsageError("its image is of another size than its disk")
            ready.mkdir(mode=0o700)
            move_file(files / DISK_NAME, ready / DISK_NAME)
            (ready / DISK_NAME).chmod(0o400)
            body = msgspec.json.format(msgspec.json.encode(metadata), indent=2)
            (ready / METADATA_NAME).write_bytes(body + b"\n")
            (ready / METADATA_NAME).chmod(0o400)

        await in_thread(executor, move)
        return await publish_sound(ready, target, read, executor)
