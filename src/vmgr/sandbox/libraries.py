"""Which files of the host a program is made of: itself, its loader, its libraries' directories.

Whole directories of libraries, since programs load further ones by name while they run (QEMU's
accelerators are such). They hold nothing of the person's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from vmgr.sandbox.need import Need
from vmgr.spawner import minimal_environment, run

__all__ = ["program_need"]

_DEADLINE: Final = 30.0  # seconds; a cold disk is slow
_PATH: Final = re.compile(r"^\s*(?:\S+ => )?(/[^()]*?) \(0x", re.MULTILINE)
_LOADER_CACHE: Final = Path("/etc/ld.so.cache")


async def program_need(program: Path, *data: Path) -> Need:
    """What `program` must see to run at all.

    Args:
        data: files or directories that it also reads; those that are not there are left out.

    Raises:
        OSError, ProcessFailedError, TimeoutError: the loader does not tell.
    """
    # ld.so(8): the loader lists what it would load, and the program does not run. (One that is
    # linked statically does run; `-version` is harmless to those we start.)
    listing = await run(
        [program, "-version"],
        env={**minimal_environment(), "LD_TRACE_LOADED_OBJECTS": "1"},
        deadline=_DEADLINE,
    )
    found = {program, _LOADER_CACHE, *data}
    for library in map(Path, _PATH.findall(listing.stdout.decode(errors="replace"))):
        found.add(library.parent)
        # Where /lib is a link to /usr/lib, programs use either name.
        found.add(library.parent.resolve())
    return Need(read_only=tuple(sorted(p for p in map(_normal, found) if p.exists())))


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))
