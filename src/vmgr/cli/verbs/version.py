"""`vmgr version`: which versions are at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr._version import __version__
from vmgr.cli.connection import client
from vmgr.cli.output import fields, print_json
from vmgr.cli.service import runs

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Show the versions of this command and, where it runs, of the helper."
EXAMPLES = """examples:
  vmgr version
  vmgr version --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    running = client(launch=False)
    helper = running.version() if runs(running.paths) else None
    if options.json:
        print_json({"version": __version__, "helper": helper})
        return 0
    print(f"vmgr {__version__}")
    if helper is None:
        print("no helper runs")
    else:
        fields([
            ("Helper", helper.version),
            ("API", helper.api),
            ("Agent protocol", helper.agent_protocol),
            ("Python", helper.python),
            ("QEMU", helper.qemu or "not found"),
        ])  # fmt: skip
    return 0
