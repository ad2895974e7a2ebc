"""Turning this process into another program, under the same number."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["become"]


def become(program: str, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Go on as `program`, with exactly `env`; inheritable fds stay open.

    For a main module's first step, before there are threads.
    """
    os.execve(program, list(argv), dict(env))  # noqa: S606 (no shell is wanted)
