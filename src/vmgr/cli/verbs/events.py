"""`vmgr events`: follow what happens."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import msgspec

from vmgr.cli.connection import client
from vmgr.cli.output import printable

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import Event

DESCRIPTION = "Follow what happens to machines and images, until Ctrl-C."
EXAMPLES = """examples:
  vmgr events
  vmgr events --json --since 0        # one JSON object per line"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument(
        "--since", type=int, metavar="N", help="begin after event number N, where still known"
    )


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    try:
        for event in client().events(options.since):
            print(_json(event) if options.json else _line(event), flush=True)
    except KeyboardInterrupt:
        sys.stdout.flush()
        return 130
    return 0


def _json(event: Event) -> str:
    return msgspec.json.encode(event).decode()


def _line(event: Event) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event.at))
    about = f" {event.machine}" if event.machine else ""
    data = " ".join(f"{key}={value}" for key, value in event.data.items())
    return printable(f"{at} {event.seq} {event.kind}{about} {data}".rstrip())
