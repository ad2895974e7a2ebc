"""`vmgr kill`: end machines at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import machine_argument
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """End machines at once, as if the power was cut. What they had not written to disk is
lost; "vmgr stop" loses nothing."""
EXAMPLES = """examples:
  vmgr kill web"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_argument(parser, many=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    return for_each(options.names, lambda name: helper.machine_kill(name).machine)
