"""`vmgr shell`: a login shell in a running machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import environment, machine_argument
from vmgr.cli.progress import ProgressLine
from vmgr.cli.session import Session
from vmgr.cli.verbs.exec import command_spec

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Open a login shell in a running machine, on a terminal that follows the size of
this one. Its exit code is the command's."""
EXAMPLES = """examples:
  vmgr shell web
  vmgr shell -u www-data web
  echo 'uptime' | vmgr shell web"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument(
        "-e", "--env", action="append", type=environment, default=[], metavar="NAME[=VALUE]",
        help="set a variable; without a value, to what it is here",
    )  # fmt: skip
    parser.add_argument("-w", "--workdir", metavar="DIR", help="where it begins")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="as whom it runs (root, say)")
    machine_argument(parser)
    parser.set_defaults(no_stdin=False)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    import msgspec

    tty = os.isatty(0)
    spec = msgspec.structs.replace(command_spec(options, [], tty=tty), login=True)
    with ProgressLine() as progress:
        helper = client()
        job = helper.exec(options.name, spec)
        return Session(job, stdin=0, tty=tty, progress=progress, questions=helper.authorize).run()
