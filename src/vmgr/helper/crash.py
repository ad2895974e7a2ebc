"""Crash reports: an uncaught error in the helper is fatal and loud.

A report holds versions, the trace and the recent log; no environment, no arguments of commands. The
newest `KEPT` are kept. A marker file beside the report says that nobody has been told of it yet.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final

from vmgr._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["take_untold", "untold", "write_report"]

KEPT: Final = 10
_UNTOLD: Final = ".untold"


def write_report(directory: Path, error: BaseException, recent_log: list[str]) -> Path:
    """Write a report on `error` and give its path.

    Raises:
        OSError: it cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = directory / f"{stamp}-{os.getpid()}.txt"
    trace = "".join(traceback.format_exception(error))
    system = os.uname()
    path.write_text(
        f"vmgr {__version__} helper crashed at {stamp}\n"
        f"python {platform.python_version()} ({sys.executable})\n"
        f"kernel {system.release} {system.machine}\n\n"
        f"{trace}\nrecent log:\n" + "\n".join(recent_log) + "\n",
        encoding="utf-8",
        errors="backslashreplace",
    )
    (directory / f"{path.name}{_UNTOLD}").touch()
    reports = sorted(directory.glob("*.txt"))
    for old in reports[:-KEPT]:
        for leftover in (old, directory / f"{old.name}{_UNTOLD}"):
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()
    return path


def untold(directory: Path) -> list[Path]:
    """Reports that nobody has been told of."""
    return [
        directory / marker.name.removesuffix(_UNTOLD)
        for marker in sorted(directory.glob(f"*{_UNTOLD}"))
    ]


def take_untold(directory: Path) -> list[Path]:
    """The same, and count them as told."""
    reports = untold(directory)
    for report in reports:
        with contextlib.suppress(FileNotFoundError):
            (directory / f"{report.name}{_UNTOLD}").unlink()
    return reports
