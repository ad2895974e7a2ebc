"""Finding the QEMU of this host and what it offers.

Versions from 7.2 (Debian 12) on are driven. The machine type is recorded with its version, as in
`pc-q35-7.2`, because an unversioned one means different hardware after QEMU is upgraded.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import UnsupportedError
from vmgr.spawner import ProcessFailedError, minimal_environment, run
from vmgr.vmm.probecache import ProbeCache, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

__all__ = ["MINIMUM", "PROGRAM", "Qemu", "find_qemu", "qemu_program"]

PROGRAM: Final = "qemu-system-x86_64"
MINIMUM: Final = (7, 2)
FAMILY: Final = "q35"  # see docs/decisions/0003-machine-type-and-boot.md
_DEADLINE: Final = 30.0  # seconds for a `-version`; a cold disk is slow
_INSTALL: Final = "install QEMU 7.2 or newer, on Debian and Ubuntu: apt-get install qemu-system-x86"
_VERSION: Final = re.compile(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?([^\n]*)")
# A line of `-machine help`: name, description, and for the newest of a family what it is an alias
# of.
_ALIAS: Final = re.compile(rf"^{FAMILY}\s.*\(alias of (\S+?)\)", re.MULTILINE)
_VERSIONED: Final = re.compile(rf"^(pc-{FAMILY}-\S+)\s", re.MULTILINE)


@dataclass(frozen=True)
class Qemu:
    """A usable QEMU."""

    program: Path
    version: str
    """As it prints it: `7.2.22`."""
    machine_type: str
    """The newest versioned type of the family that vmgr uses."""
    build: str
    """Changes with every change of the binary."""
    older_types: tuple[str, ...] = ()
    """The other versioned types of that family: what machines may have that were saved earlier."""

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version, for comparing."""
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)

    def knows(self, machine_type: str) -> bool:
        """Whether it can run a machine of that type, which another QEMU may have made."""
        return machine_type == self.machine_type or machine_type in self.older_types


def qemu_program(override: str | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Where QEMU is: the setting, else `VMGR_QEMU`, else the PATH.

    Raises:
        UnsupportedError: there is none, with how to install it.
    """
    env = os.environ if environ is None else environ
    wanted = override or env.get("VMGR_QEMU") or PROGRAM
    found = shutil.which(wanted, path=minimal_environment()["PATH"])
    if found is None:
        if wanted != PROGRAM:
            raise UnsupportedError(
                f"the configured QEMU {wanted} is not an executable file",
                next_step=f"correct the setting qemu.path (or VMGR_QEMU), or {_INSTALL}",
            )
        raise UnsupportedError(f"{PROGRAM} was not found", next_step=_INSTALL)
    return Path(found).resolve()


async def find_qemu(cache: ProbeCache, executor: Executor, *, override: str | None = None) -> Qemu:
    """Find QEMU and learn its version and machine type; asked once for each build of it.

    Args:
        override: a path or name to use instead of the usual one.
        executor: for reading files.

    Raises:
        UnsupportedError: it is missing, too old, or does not run.
    """
    loop = asyncio.get_running_loop()

    def look() -> tuple[Path, str, Qemu | None]:
        program = qemu_program(override)
        build = fingerprint(program)
        known = cache.get(f"qemu {build}")
        if known is None:
            return program, build, None
        try:
            older = tuple(known["older_types"])
            qemu = Qemu(**{**known, "program": Path(known["program"]), "older_types": older})
        except (KeyError, TypeError):
            return program, build, None  # written by another version of vmgr
        return program, build, qemu

    program, build, qemu = await loop.run_in_executor(executor, look)
    if qemu is None:
        qemu = await _ask(program, build)
        answer = {**asdict(qemu), "program": str(program)}
        await loop.run_in_executor(executor, cache.put, f"qemu {build}", answer)
    return qemu


async def _ask(program: Path, build: str) -> Qemu:
    printed = await _printed(program, "-version")
    match = _VERSION.search(printed)
    if match is None:
        raise UnsupportedError(f"{program} does not say that it is QEMU", next_step=_INSTALL)
    version = ".".join(part for part in match.group(1, 2, 3) if part)
    if (int(match[1]), int(match[2])) < MINIMUM:
        raise UnsupportedError(f"{program} is QEMU {version}, which is too old", next_step=_INSTALL)
    types = await _printed(program, "-machine", "help")
    alias = _ALIAS.search(types)
    if alias is None:
        raise UnsupportedError(
            f"{program} has no machine type {FAMILY}",
            next_step="install the complete QEMU for x86",
        )
    older = tuple(name for name in _VERSIONED.findall(types) if name != alias[1])
    return Qemu(program, version, alias[1], build, older)


async def _printed(program: Path, *arguments: str) -> str:
    try:
        done = await run([program, *arguments], deadline=_DEADLINE)
    except (OSError, ProcessFailedError, TimeoutError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UnsupportedError(
            f"{program} does not run: {why or 'it did not answer'}",
            next_step="reinstall it, on Debian and Ubuntu: "
            "apt-get install --reinstall qemu-system-x86",
        ) from error
    return done.stdout.decode(errors="replace")
