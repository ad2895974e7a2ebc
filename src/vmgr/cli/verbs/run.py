"""`vmgr run`: a command in a fresh machine."""

from __future__ import annotations

import argparse
import os

from vmgr.api.hostcommands import HostCommands
from vmgr.api.models import CreateMachine
from vmgr.cli.connection import client
from vmgr.cli.consent import agreed, yes_option
from vmgr.cli.parser import (
    cold_option,
    command_of,
    host_commands_options,
    machine_options,
    network_options,
    share_option,
    volume_option,
)
from vmgr.cli.progress import ProgressLine
from vmgr.cli.session import Session
from vmgr.cli.verbs.exec import command_options, command_spec

DESCRIPTION = """Create a machine, run a command in it with output, input and exit code passed
through, and remove the machine. Without a command, open a login shell. What is missing (an image, a
kernel) is built first. A command that a signal ended gives 128 plus the signal's number; 125 is a
failure of vmgr, 126 a command that cannot be executed, 127 one that was not found."""
EXAMPLES = """examples:
  vmgr run -- uname -a
  vmgr run --cpus 2 --memory 2G debian -- make -j2
  vmgr run --share . -- make          # in a machine that sees this directory
  vmgr run                            # a shell in a machine to throw away"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    command_options(parser)
    machine_options(parser)
    cold_option(parser)
    network_options(parser)
    host_commands_options(parser)
    volume_option(parser)
    share_option(parser)
    yes_option(parser)
    parser.add_argument("--name", metavar="NAME", help="the machine's name, while it lives")
    parser.add_argument("--rm", action="store_true", help=argparse.SUPPRESS)  # docker's habit
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    image = parser.add_argument("image", metavar="IMAGE", nargs="?", help="an image's name")
    image.completer = "images"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    parser.add_argument(
        "command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="program and arguments"
    )
    parser.set_defaults(takes_command=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    import msgspec

    command = command_of(options.command, options.after_dashes)
    tty = options.tty or (not command and os.isatty(0) and not options.no_stdin)
    spec = command_spec(options, command, tty=tty)
    if not command:
        spec = msgspec.structs.replace(spec, login=True)
    helper = client()
    machine = CreateMachine(
        name=options.name,
        image=options.image,
        cpus=options.cpus,
        memory_bytes=options.memory,
        disk_bytes=options.disk,
        cold=options.cold,
        access=options.net,
        allow=options.allow,
        host_access=options.host_access.tcp if options.host_access else [],
        host_access_udp=options.host_access.udp if options.host_access else [],
        host_commands=options.host_commands and HostCommands(mode=options.host_commands),
        ports=options.ports,
        volumes=options.volumes,
        shares=options.shares,
        consent=agreed(helper, options.name, options.shares, options.ports, yes=options.yes),
        auto_ports=options.auto_ports,
        ephemeral=True,
    )
    with ProgressLine(quiet=options.quiet) as progress:
        job = helper.run(machine, spec)
        return Session(
            job,
            stdin=0 if spec.stdin else None,
            tty=tty,
            progress=progress,
            questions=helper.authorize,
        ).run()
