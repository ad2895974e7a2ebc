"""How the programs that read strangers' archives are locked in.

They get a stream and the files that they work on: no home, no network, no rights, none of the
person's environment. Whether this host permits that is tried each time, with the very sandbox and
with nothing of a stranger's in it: what a program says that has read an archive is no reason to
start it again with more. Where the host refuses, they see what the person sees, as other workers
do; `vmgr doctor` says why and how to mend it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vmgr.artifact.tools import build_environment
from vmgr.sandbox import Need, bubblewrap_argv, find_bubblewrap, program_need
from vmgr.sandbox.python import python_files
from vmgr.spawner import ProcessFailedError, StopPolicy, minimal_environment, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Command", "porter_command", "zstd_command"]

_DEADLINE: Final = 30.0  # seconds; it takes some tenths

log = logging.getLogger(__name__)


class Command(NamedTuple):
    """What to start."""

    argv: Sequence[str]
    env: Mapping[str, str]
    confined: bool


async def porter_command(
    arguments: Sequence[str], *, read_only: Sequence[Path] = (), writable: Sequence[Path] = ()
) -> Command:
    """The porter, with these files and directories; those that are not there are left out."""
    porter = [sys.executable, "-I", "-B", "-m", "vmgr.archive.porter"]

    def look() -> tuple[list[Path], Need]:
        there = [[p for p in paths if p.exists()] for paths in (read_only, writable)]
        return python_files(), Need(read_only=tuple(there[0]), writable=tuple(there[1]))

    (program, *files), need = await asyncio.to_thread(look)
    return await _confined([*porter, *arguments], program, files, need, trial=[*porter, "digest"])


async def zstd_command(arguments: Sequence[str]) -> Command:
    """zstd, which has its standard streams and nothing else."""
    found = await asyncio.to_thread(shutil.which, "zstd", path=minimal_environment()["PATH"])
    if found is None:  # where only the person's own PATH has it
        return Command(["zstd", *arguments], build_environment(), confined=False)
    return await _confined([found, *arguments], Path(found), [], Need(), trial=[found, "--version"])


async def _confined(
    argv: list[str], program: Path, files: list[Path], need: Need, *, trial: list[str]
) -> Command:
    """`argv` in a sandbox with `need` and what it is made of, where `trial` ends well in one."""
    plain = Command(argv, build_environment(), confined=False)
    bubblewrap, found = await asyncio.to_thread(
        lambda: (find_bubblewrap(), shutil.which("setpriv", path=minimal_environment()["PATH"]))
    )
    if bubblewrap is None or found is None:
        return plain
    setpriv = Path(found)
    env = {"PATH": minimal_environment()["PATH"], "LC_ALL": "C.UTF-8"}
    try:
        whole = await program_need(program, *files) + await program_need(setpriv) + need
        await run(
            bubblewrap_argv(bubblewrap, whole, trial, setpriv=setpriv),
            env=env, deadline=_DEADLINE, policy=StopPolicy(ask=None),
        )  # fmt: skip
    except (OSError, ProcessFailedError, TimeoutError) as error:
        log.warning("no sandbox for %s: %s", argv[0], error)
        return plain
    return Command(bubblewrap_argv(bubblewrap, whole, argv, setpriv=setpriv), env, confined=True)
