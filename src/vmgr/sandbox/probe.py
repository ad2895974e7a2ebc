"""Which sandbox level this host permits for a program. What can be tried is tried.

The program is started in the very sandbox that it would run in. A good answer is kept for this
build of the program and of bubblewrap, this boot of the host and its settings about namespaces. A
bad one is not: what the person mends takes effect at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from vmgr.sandbox.bubblewrap import PROGRAM, bubblewrap_argv, find_bubblewrap
from vmgr.sandbox.libraries import program_need
from vmgr.sandbox.need import Need
from vmgr.sandbox.sandbox import Sandbox
from vmgr.spawner import ProcessFailedError, StopPolicy, minimal_environment, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Executor

__all__ = ["Answers", "Trial", "probe_sandbox"]

_DEADLINE: Final = 30.0  # seconds; it takes some hundredths
_SETTINGS: Final = (
    "kernel/random/boot_id",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
    "user/max_user_namespaces",
)
_FORMAT: Final = 1  # of the answers that are kept
INSTALL: Final = "apt-get install bubblewrap"

log = logging.getLogger(__name__)


class Answers(Protocol):
    """Where answers are kept, by key. Its calls may block."""

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer stored under `key`."""
        ...

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Store an answer."""
        ...


@dataclass(frozen=True)
class Trial:
    """A program, and how to see that it works."""

    argv: Sequence[str]
    """Ends by itself, with 0, when it works."""
    build: str
    """Changes with every change of the program."""
    data: Callable[[], Awaitable[Sequence[Path]]]
    """Finds the files and directories that it also reads."""
    said: bytes = b""
    """What it gets on its standard input; at most what a pipe holds."""


async def probe_sandbox(
    trial: Trial,
    answers: Answers,
    executor: Executor,
    *,
    bubblewrap: Path | None = None,
    settings: Path = Path("/proc/sys"),
) -> Sandbox:
    """Find out which level this host permits for a program; never fails.

    Args:
        executor: for reading files.
        bubblewrap: another one than that on the PATH.
        settings: where the kernel's settings are.
    """
    loop = asyncio.get_running_loop()

    def look() -> tuple[Path | None, Path | None, str, Sandbox | None]:
        bwrap = bubblewrap or find_bubblewrap()
        found = shutil.which("setpriv", path=minimal_environment()["PATH"])
        setpriv = None if found is None else Path(found)
        if bwrap is None or setpriv is None:
            return bwrap, setpriv, "", None
        key = _key(trial, bwrap, settings)
        known = answers.get(key)
        need = _need_from(known)
        kept = None if need is None else _namespaces(bwrap, setpriv, need)
        return bwrap, setpriv, key, kept

    try:
        bwrap, setpriv, key, known = await loop.run_in_executor(executor, look)
    except OSError as error:
        return Sandbox("filter", f"bubblewrap cannot be used: {error.strerror}")
    if known is not None:
        return known
    if bwrap is None or setpriv is None:
        missing = "bubblewrap" if bwrap is None else "setpriv (util-linux)"
        fix = INSTALL if bwrap is None else "apt-get install util-linux"
        return Sandbox("filter", f"{missing} is not installed", fix)
    try:
        need = await program_need(Path(trial.argv[0]), *await trial.data())
        refusal = await _refusal(bwrap, setpriv, need, trial)
    except (OSError, ProcessFailedError, TimeoutError) as error:
        need, refusal = Need(), str(error) or "it did not answer"
    if refusal is not None:
        log.warning("no sandbox for %s: %s", trial.argv[0], refusal)
        return Sandbox("filter", f"{PROGRAM} cannot make one ({refusal})")
    await loop.run_in_executor(
        executor, answers.put, key, {"read_only": [str(path) for path in need.read_only]}
    )
    return _namespaces(bwrap, setpriv, need)


async def _refusal(bwrap: Path, setpriv: Path, need: Need, trial: Trial) -> str | None:
    """Why the program does not work in the sandbox; None when it does."""
    argv = bubblewrap_argv(bwrap, need, trial.argv, setpriv=setpriv)
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            os.write(write, trial.said)
        finally:
            os.close(write)
        done = await run(
            argv, stdin=read, deadline=_DEADLINE, check=False, policy=StopPolicy(ask=None)
        )
    finally:
        os.close(read)
    if done.status.ok:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1].removeprefix(f"{PROGRAM}: ")[:300] if said else f"it {done.status}"


def _namespaces(bwrap: Path, setpriv: Path, need: Need) -> Sandbox:
    return Sandbox(
        "namespaces",
        "namespaces of its own with only its own files, no network and no rights",
        bubblewrap=bwrap,
        setpriv=setpriv,
        program=need,
    )


def _key(trial: Trial, bwrap: Path, settings: Path) -> str:
    found = bwrap.stat()
    parts = [f"{bwrap}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}", trial.build]
    for name in _SETTINGS:
        with contextlib.suppress(OSError):
            parts.append((settings / name).read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):  # libraries are replaced without the program being so
        parts.append(str(Path("/etc/ld.so.cache").stat().st_mtime_ns))
    return f"sandbox {_FORMAT} {' '.join(parts)}"


def _need_from(answer: dict[str, Any] | None) -> Need | None:
    paths = (answer or {}).get("read_only")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return None
    return Need(read_only=tuple(map(Path, paths)))
