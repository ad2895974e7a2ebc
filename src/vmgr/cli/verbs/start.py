"""`vmgr start`: start machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import machine_argument
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Start machines; each is ready for commands when its name is printed."
EXAMPLES = """examples:
  vmgr start web db"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_argument(parser, many=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    return for_each(options.names, lambda name: helper.machine_start(name).name)
