"""A machine's disk: a qcow2 file that holds only what differs from its base."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Final

from vmgr.artifact.faults import failed
from vmgr.artifact.tools import build_environment, require
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

__all__ = ["create_overlay"]

_DEADLINE: Final = 60.0


async def create_overlay(base: Path, path: Path, size_bytes: int, executor: Executor) -> None:
    """Make the qcow2 file `path` (0600) over the raw file `base`; it appears complete or not at all.

    Args:
        base: absolute; must stay where it is and as it is.
        path: absolute; what was there is replaced.
        size_bytes: what the machine sees.

    Raises:
        ResourceError: no space left.
        UnsupportedError: qemu-img is missing.
    """
    require("qemu-img")
    # Beginning with `/`, neither name can be taken for a protocol or for JSON by qemu-img.
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        await run(
            [
                "qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=off",
                "-F", "raw", "-b", base, "--", made, str(size_bytes),
            ],
            env=build_environment(), deadline=_DEADLINE,
        )  # fmt: skip

        def show() -> None:
            fd = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            made.rename(path)

        await asyncio.get_running_loop().run_in_executor(executor, show)
    except (OSError, ProcessFailedError) as error:
        raise failed(error, "make the machine's disk", path.parent) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
