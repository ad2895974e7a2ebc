"""`vmgr attach`: take over a running command's streams."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.parser import machine_argument
from vmgr.cli.progress import ProgressLine
from vmgr.cli.session import Session
from vmgr.errors import NotFoundError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Take over the streams of a command that runs in a machine: one started with
"exec -d", or one whose terminal was lost. A command that has ended is
reported, with what it left."""
EXAMPLES = """examples:
  vmgr jobs web
  vmgr attach web 3"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("-n", "--no-stdin", action="store_true", help="give it no input")
    machine_argument(parser)
    parser.add_argument("job", metavar="JOB", type=int, help="the job's number")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    found = [job for job in helper.job_list(options.name) if job.job == options.job]
    if not found:
        raise NotFoundError(
            f"there is no job {options.job} in {options.name}",
            next_step=f'see "vmgr jobs {options.name}"',
        )
    tty = found[0].tty and os.isatty(0)
    with ProgressLine() as progress:
        job = helper.attach(options.name, options.job)
        stdin = None if options.no_stdin else 0
        return Session(
            job, stdin=stdin, tty=tty, progress=progress, whole=False, questions=helper.authorize
        ).run()
