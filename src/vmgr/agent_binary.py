"""Where the agent's program file is: in the installed package, or built in this checkout."""

from __future__ import annotations

from pathlib import Path

from vmgr.errors import UnsupportedError

__all__ = ["find_agent"]


def find_agent() -> Path:
    """Give the agent's program file.

    A wheel carries it (`vmgr/_bin/vmgr-agent`, put there by hatch_build.py); in a checkout it is
    where cargo built it.

    Raises:
        UnsupportedError: it is in neither place.
    """
    package = Path(__file__).resolve().parent
    packaged = package / "_bin" / "vmgr-agent"
    built = package.parent.parent / "agent" / "target" / "release" / "vmgr-agent"
    for candidate in (packaged, built):
        if candidate.is_file():
            return candidate
    raise UnsupportedError(
        f"the agent's program is neither at {packaged} nor at {built}",
        next_step="run ./dev setup in the checkout, or install vmgr from a wheel",
    )
