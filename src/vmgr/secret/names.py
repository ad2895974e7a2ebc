"""What secrets may be called, and how large they may be."""

from __future__ import annotations

import re
from typing import Final

from vmgr.errors import UsageError

__all__ = ["MAX_SECRET", "check_secret_name"]

MAX_SECRET: Final = 16 * 1024
"""Bytes. All that a command is given has to fit one message to its machine."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def check_secret_name(name: str) -> str:
    """The name, which can be a file's.

    Raises:
        UsageError: it cannot be a secret's.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name[:64]!r} cannot be a secret's name",
            next_step="take up to 64 letters, digits, _, . and -, not beginning with . or -",
        )
    return name
