"""The process that serves a share: locked in, with one directory and a stream to the machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import StateError, UnsupportedError
from vmgr.sandbox import Need, Sandbox, program_need
from vmgr.spawner import minimal_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmgr.spawner import Process

__all__ = ["KEY_BYTES", "ShareSandbox", "start_server"]

KEY_BYTES: Final = 32
_OPEN_FILES: Final = 65_536
"""What a machine may have open of one share, and a little; fewer where this user may have fewer."""


@dataclass(frozen=True)
class ShareSandbox:
    """What share servers are locked into on this host."""

    sandbox: Sandbox

    @classmethod
    async def like(cls, vmms: Sandbox, program: Path) -> ShareSandbox:
        """The best that works, given what works for VMMs.

        Raises:
            UnsupportedError: the server's program does not run.
        """
        setpriv = shutil.which("setpriv", path=minimal_environment()["PATH"])
        if vmms.bubblewrap is None or setpriv is None:
            return cls(Sandbox("filter", vmms.reason, vmms.fix))
        try:
            # The server is a static program; what ties its life to its monitor's is not.
            need = await program_need(Path(setpriv)) + Need(read_only=(program,))
        except Exception as error:
            raise UnsupportedError(f"{setpriv} does not run: {error}") from error
        return cls(
            Sandbox(
                "namespaces", "", bubblewrap=vmms.bubblewrap, setpriv=Path(setpriv), program=need
            )
        )


async def start_server(
    program: Path,
    locked: ShareSandbox,
    directory: Path,
    *,
    read_only: bool,
    stream: int,
    key: bytes,
    log: int,
    hidden: Sequence[Path] = (),
) -> Process:
    """Start a server.

    Args:
        directory: its real path.
        stream: a connected socket to the machine's port; the server gets a copy.
        key: where in the stream it begins.
        log: an fd for what it says.
        hidden: directories that it must not see, though they may lie in the shared one.

    Raises:
        StateError: it cannot be locked in so that those stay hidden.
        OSError: it cannot be started.
    """
    inside = tuple(path for path in hidden if directory in path.parents)
    if inside and locked.sandbox.bubblewrap is None:
        raise StateError(
            f"{directory} has vmgr's own files in it, and this host gives no sandbox to hide them",
            next_step="share a directory without them, or see the fix with: vmgr doctor",
        )
    need = Need(
        read_only=(directory,) if read_only else (),
        writable=() if read_only else (directory,),
        own_proc=True,  # files that it has found are opened by the names of their fds
        hidden=inside,
    )
    argv = [str(program), "--stream-fd", str(stream)]
    with contextlib.ExitStack() as stack:
        read, write = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, read)
        try:
            os.write(write, key)  # it fits a pipe
        finally:
            os.close(write)
        argv += ["--key-fd", str(read), *(["--read-only"] if read_only else [])]
        return await locked.sandbox.spawn(
            [*argv, str(directory)],
            need,
            stdout=log,
            stderr=log,
            pass_fds=(stream, read),
            open_files=_most_open_files(),
        )


def _most_open_files() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)


def real_directory(path: str) -> Path | None:
    """Where a shared directory really is; None: it is not there. Blocks."""
    with contextlib.suppress(OSError, RuntimeError):
        real = Path(path).resolve(strict=True)
        if real.is_dir():
            return real
    return None


async def found_directory(path: str) -> Path | None:
    """The same, in a thread."""
    return await asyncio.to_thread(real_directory, path)
