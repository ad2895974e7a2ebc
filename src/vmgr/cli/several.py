"""Doing the same to several machines or images: each is tried and reported by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.output import problem
from vmgr.errors import HelperUnavailableError, VmgrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["for_each"]


def for_each(names: Iterable[str], action: Callable[[str], str | None]) -> int:
    """Call `action` for each of `names` once and print what it gives.

    Failures are reported as they happen and do not stop the rest, unless there is no helper.

    Returns:
        0, or when one failed: its exit code where all that failed have the same, else 1.
    """
    codes = set()
    for name in dict.fromkeys(names):
        try:
            line = action(name)
        except HelperUnavailableError:
            raise
        except VmgrError as error:
            problem(error)
            codes.add(error.exit_code)
        else:
            if line is not None:
                print(line, flush=True)
    if not codes:
        return 0
    return codes.pop() if len(codes) == 1 else 1
