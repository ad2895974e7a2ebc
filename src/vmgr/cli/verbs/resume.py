"""`vmgr resume`: let suspended machines go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import machine_argument
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Let suspended machines go on where they stood, with all that ran in them. Their
clocks are set to this computer's first."""
EXAMPLES = """examples:
  vmgr resume web"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_argument(parser, many=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    return for_each(options.names, lambda name: helper.machine_resume(name).name)
