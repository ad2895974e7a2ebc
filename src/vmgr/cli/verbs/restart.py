"""`vmgr restart`: stop and start machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import machine_argument
from vmgr.cli.several import for_each
from vmgr.cli.verbs.stop import stop_how, stop_options

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Stop machines in an orderly way and start them again."
EXAMPLES = """examples:
  vmgr restart web"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    stop_options(parser)
    machine_argument(parser, many=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    how = stop_how(options)
    return for_each(options.names, lambda name: helper.machine_restart(name, how).name)
