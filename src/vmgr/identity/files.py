"""What makes the identity visible: desktop entry, icon, AppStream data, as files of this package.

A wheel also carries them as shared data (see pyproject.toml), so that an installation for all
users has them under its prefix's `share`; `vmgr helper install` puts them into the person's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SHARE", "data_home", "identity_files"]

SHARE = Path(__file__).resolve().parent / "share"


def data_home(environ: Mapping[str, str]) -> Path:
    """The person's own data directory, as the XDG base directories have it."""
    configured = environ.get("XDG_DATA_HOME", "")
    if configured.startswith("/"):
        return Path(configured)
    return (
        Path(environ["HOME"]) if environ.get("HOME") else Path("~").expanduser()
    ) / ".local/share"


def identity_files() -> dict[str, bytes]:
    """The files by their path below a data directory."""
    return {
        str(path.relative_to(SHARE)): path.read_bytes()
        for path in sorted(SHARE.rglob("*"))
        if path.is_file()
    }
