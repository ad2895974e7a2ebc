"""`vmgr host-commands`: what a machine may run on this computer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.api.hostcommands import HostCommandsChange
from vmgr.cli.connection import client
from vmgr.cli.output import fields, print_json
from vmgr.cli.parser import HOST_COMMANDS, machine_argument

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Show and change what a machine's programs may run on this computer, as you, with
"host COMMAND": none; ask (you are asked each time, but for what is on the list); list (what is on
the list); all. A command counts by its name on your PATH, its arguments are the machine's to
choose; :open, :notify, :copy and :paste are what host open and its like do."""
EXAMPLES = """examples:
  vmgr host-commands web                 # show
  vmgr host-commands web ask
  vmgr host-commands web list --allow :open --allow make
  vmgr host-commands web --disallow make"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_argument(parser)
    parser.add_argument("mode", metavar="MODE", nargs="?", choices=HOST_COMMANDS, help="see above")
    for option, dest, summary in (
        ("--allow", "add", "put on the list; may be given several times"),
        ("--disallow", "remove", "take from the list; may be given several times"),
    ):
        parser.add_argument(
            option, action="append", default=[], dest=dest, metavar="COMMAND", help=summary
        )
    parser.add_argument("--json", action="store_true", help="as JSON")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    change = HostCommandsChange(mode=options.mode, add=options.add, remove=options.remove)
    changes = change != HostCommandsChange()
    helper = client()
    machine = (
        helper.host_commands_change(options.name, change)
        if changes
        else helper.machine_info(options.name)
    )
    if options.json:
        print_json(machine.host_commands)
    elif not changes:
        rights = machine.host_commands
        fields([
            ("Host commands", rights.mode),
            ("On the list", ", ".join(rights.allow) or "nothing"),
        ])  # fmt: skip
    return 0
