"""`vmgr start`: start machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.api.models import StartMachine
from vmgr.cli.connection import client
from vmgr.cli.parser import cold_option, machine_argument
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Start machines; each is ready for commands when its name is printed."
EXAMPLES = """examples:
  vmgr start web db"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_argument(parser, many=True)
    cold_option(parser)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    how = StartMachine(cold=options.cold)
    return for_each(options.names, lambda name: helper.machine_start(name, how).name)
