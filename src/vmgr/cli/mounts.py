"""Files of machines that are mounted on this computer: found in the kernel's table of mounts.

sshfs mounts them, over our SSH server. Nothing is written down: the mount's own name (`fsname`)
says whose files they are, so what is listed is what is there.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from vmgr.errors import ConflictError, StateError, UnsupportedError
from vmgr.mounttable import mounted
from vmgr.spawner import run

__all__ = ["Mount", "mounts", "needed_program", "source", "unmount"]

_OURS = "vmgr:"


class Mount(NamedTuple):
    """One mount."""

    machine: str
    path: str
    """In the machine."""
    directory: str
    """On this computer."""
    read_only: bool

    @property
    def lives(self) -> bool:
        """Whether somebody serves it: what a killed sshfs leaves does not answer."""
        try:
            os.lstat(self.directory)
        except OSError as error:
            return error.errno not in {errno.ENOTCONN, errno.ECONNABORTED}
        return True


def source(machine: str, path: str) -> str:
    """How a mount is named; nothing in it means something to mount options."""
    return f"{_OURS}{machine}:{quote(path)}"


def mounts(table: bytes | None = None) -> list[Mount]:
    """Those of this user, in the order in which they were mounted.

    Args:
        table: see proc_pid_mountinfo(5); None: the kernel's.
    """
    mine = f"user_id={os.getuid()}"
    found = []
    for mount in mounted(table):
        if mount.kind != "fuse.sshfs" or mine not in mount.super_options:
            continue
        name = mount.source
        if not name.startswith(_OURS) or name.count(":") < 2:  # noqa: PLR2004 (vmgr:NAME:PATH)
            continue
        _, machine, path = name.split(":", 2)
        found.append(Mount(machine, unquote(path), mount.directory, "ro" in mount.options))
    return found


def needed_program(name: str, package: str) -> str:
    """Where a program is.

    Raises:
        UnsupportedError: it is not installed.
    """
    import shutil

    if (found := shutil.which(name)) is None:
        raise UnsupportedError(
            f"{name} is not installed, which mounts machines' files",
            next_step=f"install it, as in: sudo apt-get install {package}",
        )
    return found


def unmount(mount: Mount, *, force: bool) -> None:
    """Unmount one; its directory goes too where it is one that we made and is empty.

    Args:
        force: also while programs use it: they have it until they close it.

    Raises:
        ConflictError: a program uses it.
        StateError, UnsupportedError: it cannot be.
    """
    program = needed_program("fusermount3", "fuse3")
    lazily = force or not mount.lives
    command = [program, "-u", *(["-z"] if lazily else []), mount.directory]
    done = asyncio.run(run(command, env=dict(os.environ), deadline=60, check=False))
    if not done.status.ok:
        said = done.stderr.decode(errors="replace").strip()
        if "busy" in said:
            raise ConflictError(
                f"a program uses {mount.directory}",
                next_step="end it, or unmount all the same with: vmgr umount --force",
            )
        raise StateError(f"{mount.directory} cannot be unmounted: {said or done.status}")
    directory = Path(mount.directory)
    if directory.parent == default_parent():
        for empty in (directory, directory.parent):
            try:
                empty.rmdir()
            except OSError:  # there is something in it, or it is somebody's working directory
                break


def default_parent() -> Path:
    """Where machines' files are mounted when nobody says where."""
    return Path("~/vmgr").expanduser()
