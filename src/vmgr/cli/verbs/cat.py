"""`vmgr cat`: files of machines on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.copy.place import in_machine
from vmgr.cli.copy.transfer import Remote
from vmgr.cli.output import note, printable

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Write files of machines to stdout, one after the other. A relative PATH begins at
the user's home."""
EXAMPLES = """examples:
  vmgr cat web:/etc/os-release
  vmgr cat web:/var/log/app.log db:/var/log/app.log | grep error"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="as whom, in the machine")
    places = parser.add_argument("places", metavar="NAME:PATH", nargs="+", help="files")
    places.completer = "places"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    places = [in_machine(text) for text in options.places]
    helper = client()
    out = sys.stdout.buffer
    failed = False
    for machine, path in places:
        remote = Remote(
            helper, machine, options.user, lambda line: note(f"vmgr: {printable(line)}")
        )
        incoming = remote.read(path)
        try:
            for piece in incoming.pieces():
                out.write(piece)
                out.flush()
            failed |= incoming.end() != 0
        finally:
            incoming.close()
    return 1 if failed else 0
