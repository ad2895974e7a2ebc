"""`vmgr share`: directories of this computer in machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.consent import agreed, yes_option
from vmgr.cli.output import print_json, table
from vmgr.cli.parser import Parser, machine_argument, share

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Let machines see directories of this computer. What a machine's default user and
root make there is yours on this computer; whose it is in the machine is kept in an extended
attribute. A share is there again at each start of the machine."""
EXAMPLES = """examples:
  vmgr share add web ~/project                  # at the same path in the machine
  vmgr share add web ~/data:/srv/data:ro
  vmgr share rm web /srv/data
  vmgr share ls"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="share_verb", parser_class=Parser
    )
    listing = verbs.add_parser("ls", help="list them", description="List shares.")
    listing.set_defaults(action=_list)
    argument = listing.add_argument("name", metavar="NAME", nargs="?", help="of one machine")
    argument.completer = "machines"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    listing.add_argument("--json", action="store_true", help="as JSON")
    adding = verbs.add_parser(
        "add", help="share directories", description="Share directories with a machine."
    )
    adding.set_defaults(action=_add)
    machine_argument(adding)
    adding.add_argument(
        "shares", metavar="HOST[:GUEST][:ro]", nargs="+", type=share, help="which, and where"
    )
    yes_option(adding)
    removing = verbs.add_parser(
        "rm",
        help="stop sharing directories",
        description="Stop sharing directories. What is open of them in the machine fails.",
    )
    removing.set_defaults(action=_remove)
    machine_argument(removing)
    removing.add_argument("paths", metavar="GUEST", nargs="+", help="their paths in the machine")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _list(options: argparse.Namespace) -> int:
    helper = client()
    names = [options.name] if options.name else [one.name for one in helper.machine_list()]
    found = [(name, one) for name in names for one in helper.share_list(name)]
    if options.json:
        import msgspec

        print_json([{"machine": name, **msgspec.to_builtins(one)} for name, one in found])
        return 0
    table(
        ("MACHINE", "HOST", "GUEST", "MODE", "TRANSPORT", "NOTE"),
        [
            (
                name, one.host, one.guest or one.host, "ro" if one.read_only else "rw",
                one.transport or "-", one.problem or "",
            )
            for name, one in found
        ],
    )  # fmt: skip
    return 0


def _add(options: argparse.Namespace) -> int:
    helper = client()
    for wanted in options.shares:
        consent = agreed(helper, options.name, [wanted], yes=options.yes)
        helper.share_add(options.name, wanted, consent=consent)
    return 0


def _remove(options: argparse.Namespace) -> int:
    helper = client()
    for path in options.paths:
        helper.share_remove(options.name, path)
    return 0
