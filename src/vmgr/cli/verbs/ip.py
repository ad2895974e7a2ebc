"""`vmgr ip`: a machine's address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import print_json
from vmgr.cli.parser import machine_argument
from vmgr.errors import NotFoundError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Show the address that a machine has on this computer's loopback device. Its ports
are there under their own numbers, so that two machines' port 80 do not meet. --json shows also the
addresses and the name by which other machines know it."""
EXAMPLES = """examples:
  vmgr ip web
  curl http://$(vmgr ip web):3000/
  vmgr ip web --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="all addresses, as JSON")
    machine_argument(parser)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    network = client().machine_info(options.name).network
    if network is None:
        raise NotFoundError(
            f"machine {options.name} has no address yet", next_step=f"vmgr start {options.name}"
        )
    if options.json:
        print_json(
            {
                "loopback": network.loopback,
                "address": network.address,
                "address6": network.address6,
                "name": network.name,
            }
        )
    else:
        print(network.loopback)
    return 0
