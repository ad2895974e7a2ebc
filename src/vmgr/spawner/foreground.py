"""A program that takes the person's terminal over for a while: their editor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.spawner.process import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import StrPath

__all__ = ["run_in_foreground"]


def run_in_foreground(argv: Sequence[StrPath]) -> ExitStatus:
    """Run a program of the person's as their shell would, and wait for its end.

    It has the terminal, environment, directory, umask and process group of this command, which
    must be the person's own: not for the helper. A Ctrl-C is the program's to act on.
    """
    from subprocess import Popen

    with Popen(argv) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue
    return ExitStatus(code=code) if code >= 0 else ExitStatus(signal=-code)
