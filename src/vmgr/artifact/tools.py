"""The host's programs that builds need, and which Debian package brings each."""

from __future__ import annotations

import shutil
from typing import Final

from vmgr.errors import UnsupportedError
from vmgr.spawner import minimal_environment

__all__ = ["PACKAGES", "build_environment", "missing_tools", "require"]

PACKAGES: Final = {
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "fakechroot": "fakechroot",
    "fakeroot": "fakeroot",
    "flock": "util-linux",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newgidmap": "uidmap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "resize2fs": "e2fsprogs",
    "sshfs": "sshfs",
    "tar": "tar",
    "tune2fs": "e2fsprogs",
    "unshare": "util-linux",
    "zstd": "zstd",
}


def build_environment(**extra: str) -> dict[str, str]:
    """What build tools get: untranslated messages (we read some of them), no questions, UTC."""
    fixed = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "TZ": "UTC"}
    return minimal_environment(**{**fixed, **extra})


def missing_tools(*tools: str) -> list[str]:
    """Those of `tools` that are not on the PATH that builds use."""
    path = build_environment()["PATH"]
    return [tool for tool in tools if shutil.which(tool, path=path) is None]


def require(*tools: str) -> None:
    """See that all `tools` are there.

    Raises:
        UnsupportedError: some are missing; the next step names the packages that bring them.
    """
    missing = missing_tools(*tools)
    if not missing:
        return
    packages = sorted({PACKAGES[tool] for tool in missing})
    verb = "is" if len(missing) == 1 else "are"
    raise UnsupportedError(
        f"{', '.join(missing)} {verb} not installed",
        next_step=f"run `apt-get install {' '.join(packages)}` as root",
        details={"missing": missing, "packages": packages},
    )
