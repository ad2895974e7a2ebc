"""`vmgr ls`: list machines, or what is in directories of theirs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import age, bytes_text, print_json, table

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import MachineInfo

DESCRIPTION = """List machines; with NAME:PATH, what is in a directory of one. A relative PATH
begins at the user's home. Names that begin with a dot are shown with -a."""
EXAMPLES = """examples:
  vmgr ls
  vmgr ls -l web:/var/log
  vmgr ls --json
  vmgr rm -f $(vmgr ls -q)            # remove all of them"""

_REASON_MAX = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the names")
    parser.add_argument(
        "-a", "--all", action="store_true",
        help="also stopped ones, as always; of files also those whose names begin with a dot",
    )  # fmt: skip
    parser.add_argument("-l", "--long", action="store_true", help="of files: modes, owners, sizes")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="of files: as whom")
    places = parser.add_argument("places", metavar="NAME:PATH", nargs="*", help="directories")
    places.completer = "places"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    if options.places:
        from vmgr.cli.copy.listing import show_files

        return show_files(options)
    machines = client().machine_list()
    if options.json:
        print_json(machines)
    elif options.quiet:
        for machine in machines:
            print(machine.name)
    else:
        now = time.time()
        table(
            ("NAME", "STATUS", "IMAGE", "CPUS", "MEMORY", "DISK", "CREATED"),
            [
                (
                    machine.name, _status(machine, now), machine.image, machine.cpus,
                    bytes_text(machine.memory_bytes), bytes_text(machine.disk_used_bytes),
                    f"{age(now - machine.created_at)} ago",
                )
                for machine in machines
            ],
        )  # fmt: skip
    return 0


def _status(machine: MachineInfo, now: float) -> str:
    if machine.status == "running" and machine.started_at is not None:
        return f"running {age(now - machine.started_at)}"
    if machine.status_reason:
        # `info` has all of it; a table must stay a table.
        reason = machine.status_reason
        short = reason if len(reason) <= _REASON_MAX else f"{reason[: _REASON_MAX - 1]}…"
        return f"{machine.status} ({short})"
    return machine.status
