"""`vmgr umount`: take machines' files from this computer again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmgr.errors import NotFoundError

if TYPE_CHECKING:
    import argparse

    from vmgr.cli.mounts import Mount

DESCRIPTION = """Unmount a machine's files: all of a machine's, or those at a directory."""
EXAMPLES = """examples:
  vmgr umount web
  vmgr umount ~/www
  vmgr umount --force web             # also while a program uses them"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    what = parser.add_argument("what", metavar="NAME|DIR", nargs="+", help="whose, or where")
    what.completer = "machines"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    parser.add_argument("-f", "--force", action="store_true", help="also while programs use them")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    from vmgr.cli.mounts import unmount

    for one in options.what:
        for mount in _named(one):
            unmount(mount, force=options.force)
    return 0


def _named(what: str) -> list[Mount]:
    from vmgr.cli.mounts import mounts

    # The last one first: mounts may lie in each other.
    found = list(reversed(mounts()))
    directory = os.path.abspath(what)  # noqa: PTH100 (a dead mount cannot be resolved)
    named = [mount for mount in found if what == mount.machine] or [
        mount for mount in found if directory == mount.directory
    ]
    if not named:
        raise NotFoundError(
            f"nothing of a machine is mounted as {what}", next_step="see: vmgr mount"
        )
    return named
