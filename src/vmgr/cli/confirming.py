"""Questions at the terminal that are answered with yes or no."""

from __future__ import annotations

import os
import sys

from vmgr.cli.output import printable
from vmgr.errors import CancelledByUserError

__all__ = ["can_be_asked", "confirmed"]


def can_be_asked() -> bool:
    """Whether somebody sits there, who sees a question and types an answer."""
    return os.isatty(0) and os.isatty(2)


def confirmed(question: str, *, cancelled: str = "nothing was done") -> bool:
    """Put a question; everything but a yes, also the end of what is typed, is a no.

    Args:
        question: with its question mark; what is not printable in it is escaped.
        cancelled: what is said after Ctrl-C.

    Raises:
        CancelledByUserError: Ctrl-C.
    """
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        raise CancelledByUserError(cancelled) from None
