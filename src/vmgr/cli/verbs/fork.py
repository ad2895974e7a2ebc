"""`vmgr fork`: make running copies of a running machine."""

from __future__ import annotations

import argparse
from typing import Final

from vmgr.api.models import ForkMachine
from vmgr.cli.connection import client
from vmgr.cli.output import print_json, problem
from vmgr.cli.parser import machine_argument
from vmgr.errors import VmgrError

_MOST: Final = 100  # as the API has it

DESCRIPTION = """Copy a running machine, with all that runs in it, into machines of their own, while
it goes on. Each copy has a name, addresses and identity of its own; memory that none of them
changes exists once. The names are printed as they are: those that are not given are made from the
machine's."""
EXAMPLES = """examples:
  vmgr fork web                       # web-1
  vmgr fork web try-a try-b
  vmgr fork web --count 10"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--count", "-n", type=_count, metavar="N", help="how many copies")
    parser.add_argument("--json", action="store_true", help="print what became of each as JSON")
    machine_argument(parser)
    parser.add_argument("new", metavar="NEW", nargs="*", default=[], help="names of the copies")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    made = client().machine_fork(options.name, ForkMachine(names=options.new, count=options.count))
    if options.json:
        print_json(made)
    for outcome in made:
        if outcome.error is not None:
            error = VmgrError(outcome.error.message, next_step=outcome.error.next_step)
            problem(error)
        elif not options.json:
            print(outcome.name)
    return 1 if any(outcome.error is not None for outcome in made) else 0


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of copies from 1 to {_MOST}')
    return int(text)
