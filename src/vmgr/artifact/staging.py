"""Directories in which artifacts are made before a rename shows them.

A staging directory is `.new-XXXX` beside the artifacts (so the rename stays in one file system) and
is locked with flock(2) as long as its maker lives: a maker that died, however, has let go of the
lock, and that is how residue is told from work in progress. No pids are written down, so a reboot
or another pid namespace changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vmgr.artifact.privilege import Privilege, PrivilegeKind
from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import build_environment
from vmgr.errors import StateError
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from concurrent.futures import Executor
    from pathlib import Path

__all__ = [
    "discard",
    "publish",
    "publish_sound",
    "remove_residue",
    "remove_tree",
    "residue",
    "settle",
    "staging",
]

T = TypeVar("T")
_PREFIX: Final = ".new-"
_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def staging(parent: Path, privilege: Privilege | None = None) -> AsyncIterator[Path]:
    """A new private directory in `parent`, gone at the end unless it was renamed away.

    Args:
        privilege: what the files inside are made with, and so what removing them takes.
    """
    path, lock = _make(parent)
    try:
        yield path
    finally:
        await settle(_finish(path, lock, privilege))


async def settle(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` to its end although we may be cancelled meanwhile; the cancellation comes after."""
    task = asyncio.create_task(work, name="settle")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _finish(path: Path, lock: int, privilege: Privilege | None) -> None:
    try:
        await remove_tree(path, privilege)
    finally:
        os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        path = parent / f"{_PREFIX}{secrets.token_hex(6)}"
        try:
            path.mkdir(mode=0o700)
        except FileNotFoundError:
            raise StateError(
                f"the directory {parent} is missing", next_step="restart the helper"
            ) from None
        if (lock := _lock(path)) is not None:
            return path, lock


def _lock(path: Path) -> int | None:
    """Lock a directory; None when someone else has it, or it has gone meanwhile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def publish(source: Path, target: Path) -> bool:
    """Show a finished directory under its name; False when an equal one is there already.

    Everything in it is on the disk before the name is.
    """
    for path in (*source.iterdir(), source):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    try:
        source.rename(target)
    except OSError:
        if target.is_dir():
            return False
        raise
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return True


async def publish_sound(
    source: Path, target: Path, read: Callable[[Path], T], executor: Executor
) -> T:
    """Show a finished directory and read it; a damaged one of that name gives way to it.

    Args:
        source: the directory, in staging.
        target: its name.
        read: reads an artifact; `StateError` says that it is damaged.
        executor: for file work.
    """
    if not await in_thread(executor, publish, source, target):
        try:
            return await in_thread(executor, read, target)
        except StateError as error:
            _log.warning("replacing %s: %s", target, error.message)
            await discard(target)
            await in_thread(executor, publish, source, target)
    return await in_thread(executor, read, target)


async def discard(path: Path) -> None:
    """Remove an artifact: its name goes first and at once, so no half of it is ever seen."""
    gone, lock = _set_aside(path)
    try:
        await remove_tree(gone, None)
    finally:
        os.close(lock)


def _set_aside(path: Path) -> tuple[Path, int]:
    gone, lock = _make(path.parent)
    try:
        path.rename(gone / "gone")
    except OSError:
        gone.rmdir()
        os.close(lock)
        raise
    return gone, lock


def residue(parent: Path) -> list[Path]:
    """Staging directories in `parent`, of dead makers and of living ones."""
    return sorted(parent.glob(f"{_PREFIX}*"))


async def remove_residue(parent: Path, privilege: Privilege | None = None) -> list[str]:
    """Remove what dead makers left in `parent`; gives the names."""
    removed: list[str] = []
    for path in residue(parent):
        if (lock := _lock(path)) is None:
            continue
        try:
            await remove_tree(path, privilege)
        except (OSError, ProcessFailedError) as error:
            _log.warning("cannot remove %s, left by a dead process: %s", path, error)
        else:
            removed.append(path.name)
        finally:
            os.close(lock)
    return removed


async def remove_tree(path: Path, privilege: Privilege | None) -> None:
    """Remove a directory whose files may belong to ids that only `privilege` reaches.

    Raises:
        ProcessFailedError: something could not be removed.
    """
    command = ["rm", "-rf", "--one-file-system", "--", os.fspath(path)]
    if privilege is not None and privilege.kind is PrivilegeKind.SUBIDS:
        command = privilege.wrap(command)
    else:
        # Directories that their owner may not write (0555) hold their entries fast.
        await run(["chmod", "-R", "u+rwX", "--", path], env=build_environment(), check=False)
    await run(command, env=build_environment())
