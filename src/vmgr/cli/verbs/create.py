"""`vmgr create`: a new machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.api.hostcommands import HostCommands
from vmgr.api.models import CreateMachine, ImageBuild
from vmgr.cli.connection import client
from vmgr.cli.consent import agreed, yes_option
from vmgr.cli.output import print_json
from vmgr.cli.parser import (
    cold_option,
    host_commands_options,
    machine_options,
    network_options,
    share_option,
    user_options,
    volume_option,
)
from vmgr.cli.progress import ProgressLine
from vmgr.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Create a machine with a disk of its own. Without a name, one is made up. The name
is printed. An image that is missing and that vmgr can build is built first."""
EXAMPLES = """examples:
  vmgr create web
  vmgr create --user dev web          # commands in it run as dev, who has sudo
  vmgr create --from web:before trial
  vmgr create --share ~/project --share ~/data:/data:ro dev
  vmgr create --image debian --cpus 2 --memory 2G --disk 100G build"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_options(parser)
    cold_option(parser)
    network_options(parser)
    host_commands_options(parser)
    user_options(parser)
    volume_option(parser)
    share_option(parser)
    yes_option(parser)
    image = parser.add_argument("--image", metavar="IMAGE", help="an image's name or digest")
    image.completer = "images"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    parser.add_argument(
        "--user-data", metavar="FILE", help="for cloud-init in the image (-: standard input)"
    )
    origin = parser.add_argument(
        "--from", dest="snapshot", metavar="MACHINE:TAG", help="begin as this snapshot was"
    )
    origin.completer = "snapshots"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    parser.add_argument("--name", dest="name_option", metavar="NAME", help="the same as NAME")
    parser.add_argument("--start", action="store_true", help="start it as well")
    parser.add_argument("--json", action="store_true", help="print the machine as JSON")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the machine's name")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    name = options.name if options.name is not None else options.name_option
    wanted = CreateMachine(
        name=name,
        image=options.image,
        cpus=options.cpus,
        memory_bytes=options.memory,
        disk_bytes=options.disk,
        cold=options.cold,
        user_data=None if options.user_data is None else _read(options.user_data),
        user="root" if options.root else options.as_user,
        access=options.net,
        allow=options.allow,
        host_access=options.host_access.tcp if options.host_access else [],
        host_access_udp=options.host_access.udp if options.host_access else [],
        host_commands=options.host_commands and HostCommands(mode=options.host_commands),
        ports=options.ports,
        volumes=options.volumes,
        shares=options.shares,
        consent=agreed(helper, name, options.shares, options.ports, yes=options.yes),
        snapshot=options.snapshot,
        auto_ports=options.auto_ports,
    )
    try:
        machine = helper.machine_create(wanted)
    except NotFoundError as error:
        if (recipe := error.details.get("recipe")) is None:
            raise
        with ProgressLine() as progress:
            helper.image_build(ImageBuild(recipe=recipe), progress.show)
        machine = helper.machine_create(wanted)
    if options.start:
        machine = helper.machine_start(machine.name)
    if options.json:
        print_json(machine)
    else:
        print(machine.name)
    return 0


def _read(path: str) -> str:
    import sys
    from pathlib import Path

    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text") from None
