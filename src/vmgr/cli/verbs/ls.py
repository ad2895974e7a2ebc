"""`vmgr ls`: list machines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import age, bytes_text, print_json, table

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import MachineInfo

DESCRIPTION = "List machines."
EXAMPLES = """examples:
  vmgr ls
  vmgr ls --json
  vmgr rm -f $(vmgr ls -q)            # remove all of them"""

_REASON_MAX = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the names")
    parser.add_argument("-a", "--all", action="store_true", help="also stopped ones, as always")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
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
