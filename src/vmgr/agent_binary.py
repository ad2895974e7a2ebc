"""Where the programs in Rust are: in the installed package, or built in this checkout."""

from __future__ import annotations

from pathlib import Path

from vmgr.errors import UnsupportedError

__all__ = ["find_agent", "find_share_server"]


def find_agent() -> Path:
    """Give the agent's program file.

    A wheel carries it (`vmgr/_bin/vmgr-agent`, put there by hatch_build.py); in a checkout it is
    where cargo built it.

    Raises:
        UnsupportedError: it is in neither place.
    """
    return _find("the agent's program", "agent", "vmgr-agent")


def find_share_server() -> Path:
    """Give the share server's program file, which is carried and built in the same way.

    Raises:
        UnsupportedError: it is in neither place.
    """
    return _find("the share server's program", "share-server", "vmgr-share-server")


def _find(what: str, crate: str, name: str) -> Path:
    package = Path(__file__).resolve().parent
    packaged = package / "_bin" / name
    built = package.parent.parent / crate / "target" / "release" / name
    for candidate in (packaged, built):
        if candidate.is_file():
            return candidate
    raise UnsupportedError(
        f"{what} is neither at {packaged} nor at {built}",
        next_step="run ./dev setup in the checkout, or install vmgr from a wheel",
    )
