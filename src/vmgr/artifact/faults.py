"""Turning what failed underneath into sentences."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final

from vmgr.errors import ResourceError, VmgrError

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.spawner import ProcessFailedError

__all__ = ["failed", "free_bytes", "human_size", "no_space", "require_space"]

_NO_SPACE: Final = re.compile(
    r"No space left on device|Disk quota exceeded|Could not allocate block|ENOSPC"
    r"|don't have enough free space|failed to write \(No space"
)
_UNREACHABLE: Final = re.compile(
    r"Could not resolve|Temporary failure resolving|Could not connect|Unable to connect"
    r"|Connection (?:failed|refused|timed out)|Cannot initiate the connection"
    r"|Network is unreachable|Failed to fetch|Could not wait for server|Certificate verification"
)
_TAIL: Final = 4_000


def human_size(count: int) -> str:
    """`count` bytes for people, with binary units: `1.5 GiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 (the step between binary units)
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def free_bytes(directory: Path) -> int:
    """What this user may still write in the file system of `directory`."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def no_space(directory: Path, needed: int | None = None) -> ResourceError:
    """The error for a full file system, with figures; `needed` in bytes."""
    free = free_bytes(directory)
    wants = f", about {human_size(needed)} needed" if needed else ""
    return ResourceError(
        f"no space left in {directory}: {human_size(free)} free{wants}",
        next_step="free some space there, or run `vmgr image rm` on images that nothing uses",
        details={"directory": str(directory), "free_bytes": free, "needed_bytes": needed},
    )


def require_space(directory: Path, needed: int) -> None:
    """Raise ResourceError unless about `needed` bytes are free where `directory` is."""
    if free_bytes(directory) < needed:
        raise no_space(directory, needed)


def failed(
    error: OSError | ProcessFailedError, doing: str, directory: Path, needed: int | None = None
) -> VmgrError:
    """Make the error that people get out of what a tool or the system said.

    Args:
        doing: what was tried, to follow "could not": `build the image`.
        directory: where the bytes were to go.
        needed: roughly how many bytes of space the whole takes.
    """
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return no_space(directory, needed)
        return VmgrError(f"could not {doing}: {error.strerror or error}")
    output = error.output[-_TAIL:]
    if _NO_SPACE.search(output):
        return no_space(directory, needed)
    details = {"command": error.argv, "output": output}
    if _UNREACHABLE.search(output):
        return VmgrError(
            f"could not {doing}: the host's Debian mirror cannot be reached",
            next_step="check the network and the proxy settings of apt, then try again",
            details=details,
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # Tools say what went wrong first and that they gave up last.
    telling = [line for line in lines if line.startswith(("E:", "mke2fs:", "tar:", "error:"))]
    reason = (telling or lines or [str(error.status)])[0].removeprefix("E: ").rstrip(".")
    return VmgrError(f"could not {doing}: {reason}", details=details)
