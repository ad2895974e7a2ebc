"""`vmgr rm`: remove machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import machine_argument
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Remove machines and their disks."
EXAMPLES = """examples:
  vmgr rm web
  vmgr rm -f web db                   # stop them first"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("-f", "--force", action="store_true", help="stop a running machine first")
    machine_argument(parser, many=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    return for_each(
        options.names, lambda name: helper.machine_remove(name, force=options.force).machine
    )
