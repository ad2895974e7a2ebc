"""`vmgr suspend`: save machines' memory to disk and free their RAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import machine_argument
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Suspend machines: their memory goes to disk and what runs in them stands still,
without taking memory or CPU of this computer. `vmgr resume`, or using them in any way (exec,
shell, cp, a forwarded port), lets them go on."""
EXAMPLES = """examples:
  vmgr suspend web db
  vmgr exec web -- uptime             # goes on by itself"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_argument(parser, many=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    return for_each(options.names, lambda name: helper.machine_suspend(name).name)
