"""`vmgr jobs`: the commands that run in a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import age, print_json, table
from vmgr.cli.parser import machine_argument

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import JobInfo

DESCRIPTION = "List the commands that run in a machine, and those that ended uncollected."
EXAMPLES = """examples:
  vmgr jobs web
  vmgr jobs web --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the numbers")
    machine_argument(parser)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    jobs = client().job_list(options.name)
    if options.json:
        print_json(jobs)
    elif options.quiet:
        for job in jobs:
            print(job.job)
    else:
        table(
            ("JOB", "PID", "USER", "STATUS", "SINCE", "COMMAND"),
            [(j.job, j.pid, j.user, _status(j), age(j.running_seconds), j.label) for j in jobs],
        )
    return 0


def _status(job: JobInfo) -> str:
    if job.exit is not None:
        return f"exited ({job.exit.exit_code})"
    if job.attached:
        return "attached"
    return "detached"
