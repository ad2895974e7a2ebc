"""What may be shared, and where it may be seen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import ConflictError, NotFoundError, ResourceError, UsageError
from vmgr.mounttable import mounted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmgr.api.shares import Share

__all__ = ["check_guest", "check_host", "check_shares"]

_LONGEST: Final = 4_095  # PATH_MAX less its NUL
# The machine would not work with something else in their place.
_NEEDED: Final = ("/", "/proc", "/sys", "/dev", "/run", "/usr", "/lib", "/bin", "/sbin", "/etc")


def check_guest(path: str) -> None:
    """See that a share can be mounted at `path` in a machine.

    Raises:
        UsageError: it is no path for that.
    """
    if not path.startswith("/"):
        raise UsageError(
            f'"{path}" is not an absolute path in the machine',
            next_step="give one that begins with /, as in: --share DIR:/mnt/dir",
        )
    if "\0" in path or len(os.fsencode(path)) > _LONGEST:
        raise UsageError("that path in the machine is not one that Linux has")
    if os.path.normpath(path) != path or path.startswith("//"):
        raise UsageError(
            f'"{path}" is not a plain path in the machine',
            next_step="give it without . and .., double slashes or a slash at its end",
        )
    if path in _NEEDED:
        raise UsageError(
            f"the machine needs its own {path}", next_step="mount the share somewhere below"
        )


def check_host(path: str, own: Iterable[Path]) -> None:
    """See that a directory of this computer can be shared; blocks.

    Args:
        own: vmgr's own directories.

    Raises:
        UsageError: it must not be.
        NotFoundError: it is not there, or no directory.
    """
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f'"{path}" is not an absolute path of this computer')
    try:
        real = Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "it is a link to itself"
        raise NotFoundError(
            f"{path} cannot be shared: {why}", next_step="make it first, or share another directory"
        ) from error
    if not real.is_dir():
        raise UsageError(
            f"{path} is not a directory", next_step="share the directory that it is in"
        )
    if not os.access(real, os.R_OK | os.X_OK):
        raise UsageError(f"{path} cannot be read by you, so it cannot be shared")
    if real == Path("/"):
        raise UsageError(
            "the whole file system of this computer cannot be shared",
            next_step="share the directories that the machine needs",
        )
    if _is_automounters(real):
        raise UsageError(
            f"{path} is an automounter's: whatever name a machine tries there would be mounted",
            next_step="share a directory that is mounted there",
        )
    for place in own:
        place_real = place.resolve()
        if real == place_real or place_real in real.parents:
            raise UsageError(
                f"{path} belongs to vmgr itself, whose files machines must not see",
                next_step="share another directory",
            )


def _is_automounters(path: Path) -> bool:
    """Whether a directory is itself on an autofs."""
    device = path.stat().st_dev
    number = (os.major(device), os.minor(device))
    return any(mount.device == number and mount.kind == "autofs" for mount in mounted())


def check_shares(shares: Sequence[Share], most: int) -> None:
    """See that these can be together in one machine.

    Raises:
        ConflictError: two are to be at one place.
        ResourceError: they are too many.
    """
    seen: set[str] = set()
    for share in shares:
        if share.guest in seen:
            raise ConflictError(
                f"two shares cannot both be at {share.guest} in the machine",
                next_step="give one of them another path: --share DIR:/other/path",
            )
        seen.add(share.guest or "")
    if len(shares) > most:
        raise ResourceError(
            f"a machine can have {most} shares at most",
            next_step="share a directory that holds several of them",
        )
