"""`vmgr doctor`: check this host."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import paint, print_json, printable

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Check what vmgr needs of this host. Each thing that is missing is named with the
exact command that mends it. Exits with 1 when something is broken."""
EXAMPLES = """examples:
  vmgr doctor
  vmgr doctor --json"""

_MARKS = {
    "ok": ("\u2714", "ok", "green"),
    "warning": ("!", "!", "yellow"),
    "error": ("\u2718", "X", "red"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    report = client().doctor()
    if options.json:
        print_json(report)
    else:
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        for check in report.checks:
            mark, ascii_mark, colour = _MARKS[check.status]
            sign = paint(mark if unicode else ascii_mark, colour)
            print(f"{sign} {check.name}: {printable(check.summary)}")
            if check.fix:
                print(f"    fix: {printable(check.fix)}")
    return 1 if any(check.status == "error" for check in report.checks) else 0
