"""`vmgr stop`: stop machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.api.models import StopMachine
from vmgr.cli.connection import client
from vmgr.cli.output import note
from vmgr.cli.parser import machine_argument
from vmgr.cli.several import for_each
from vmgr.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import StopReport

DESCRIPTION = """Stop machines: the agent is asked to power off, then ACPI's power button is
pressed, then the power is cut. When more than the first was needed, that is said."""
EXAMPLES = """examples:
  vmgr stop web
  vmgr stop -t 60 db                  # give it a minute"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    stop_options(parser)
    machine_argument(parser, many=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    how = stop_how(options)

    def stop(name: str) -> str:
        report = helper.machine_stop(name, how)
        _explain(report)
        return report.machine

    return for_each(options.names, stop)


def stop_options(parser: argparse.ArgumentParser) -> None:
    """Declare how long stopping may take; `restart` has this too."""
    parser.add_argument(
        "-t", "--time", type=float, metavar="SECONDS",
        help="how long the machine may take to power off by itself",
    )  # fmt: skip


def stop_how(options: argparse.Namespace) -> StopMachine:
    """What the options ask for."""
    if options.time is not None and not 0 <= options.time < float("inf"):
        raise UsageError(f"{options.time:g} is not a number of seconds")
    return StopMachine(agent_timeout=options.time)


def _explain(report: StopReport) -> None:
    if report.method == "already-stopped":
        note(f"vmgr: {report.machine} was stopped already")
    elif report.method != "agent":
        tried = ", ".join(f"{s.method} {s.outcome} after {s.seconds:.1f} s" for s in report.steps)
        note(f"vmgr: {report.machine} did not power off by itself ({tried})")
