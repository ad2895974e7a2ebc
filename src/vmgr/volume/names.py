"""What volumes can be called, and where in a machine they can be."""

from __future__ import annotations

import posixpath
import re
from typing import Final

from vmgr.errors import UsageError

__all__ = ["check_path", "check_volume_name"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_PATH_MAX: Final = 1_024
# File systems of the machine's kernel, which nothing is put on.
_KERNELS: Final = ("/proc", "/sys", "/dev")
# Without what is there a machine does not work.
_NEEDED: Final = ("/run", "/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc")


def check_volume_name(name: str) -> str:
    """See that `name` can be a volume's.

    Raises:
        UsageError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a volume's name",
            next_step="use up to 63 lower-case letters, digits, '-', '_' and '.', "
            "beginning with a letter or digit",
        )
    return name


def check_path(path: str | None, name: str) -> str:
    """Where a volume is mounted: `path`, made plain, or /mnt/NAME.

    Raises:
        UsageError: nothing can be mounted there.
    """
    if path is None:
        return f"/mnt/{name}"
    plain = posixpath.normpath(path)
    if not path.startswith("/") or ".." in path.split("/") or len(path) > _PATH_MAX:
        problem = "is not an absolute path"
    elif not path.isprintable():
        problem = "has letters in it that cannot be shown"
    elif plain.strip("/") == "":
        problem = "is the machine's root"
    elif any(plain == kernels or plain.startswith(f"{kernels}/") for kernels in _KERNELS):
        problem = "is the kernel's"
    elif plain in _NEEDED:
        problem = "is what the machine itself needs"
    else:
        return "/" + plain.strip("/")
    raise UsageError(
        f"{path!r} {problem}, so no volume can be there",
        next_step=f"name a directory of the machine, like {name}:/srv/{name}",
    )
