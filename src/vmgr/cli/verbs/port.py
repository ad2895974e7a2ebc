"""`vmgr port`: ports of this computer that lead into machines."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.consent import agreed, yes_option
from vmgr.cli.output import print_json, table
from vmgr.cli.parser import Parser, machine_argument, port
from vmgr.errors import NotFoundError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Forward ports of this computer to machines. Only this computer can use them, unless
an address says otherwise. They are opened again at each start of the machine. What something in a
machine listens on appears by itself (`vmgr config get ports.auto`), with its own number where this
computer has that free, and always at the address that `vmgr ip` shows."""
EXAMPLES = """examples:
  vmgr port add web 8080:80
  vmgr port add dns 5353:53/udp
  vmgr port add web 0.0.0.0:80:80     # for everyone who reaches this computer
  vmgr port ls"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="port_verb", parser_class=Parser
    )
    listing = verbs.add_parser("ls", help="list them", description="List forwarded ports.")
    listing.set_defaults(action=_list)
    argument = listing.add_argument("name", metavar="NAME", nargs="?", help="of one machine")
    argument.completer = "machines"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    listing.add_argument("--json", action="store_true", help="as JSON")
    for verb, action, summary in (
        ("add", _add, "forward ports"),
        ("rm", _remove, "stop forwarding ports"),
    ):
        made = verbs.add_parser(verb, help=summary, description=summary.capitalize() + ".")
        made.set_defaults(action=action)
        machine_argument(made)
        made.add_argument(
            "ports", metavar="[IP:]HOST:GUEST[/udp]", nargs="+", type=port, help="which"
        )
        if verb == "add":
            yes_option(made)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _list(options: argparse.Namespace) -> int:
    helper = client()
    if options.name:
        found = [(options.name, port) for port in helper.port_list(options.name)]
    else:
        found = []
        for name in [one.name for one in helper.machine_list()]:
            with contextlib.suppress(NotFoundError):  # removed meanwhile
                found += [(name, port) for port in helper.port_list(name)]
    if options.json:
        import msgspec

        print_json([{"machine": name, **msgspec.to_builtins(port)} for name, port in found])
        return 0
    table(
        ("MACHINE", "HOST", "PORT", "PROTOCOL", "STATUS", "NOTE"),
        [
            (
                name, f"{p.address}:{p.host_port}", p.guest_port, p.protocol,
                ("automatic" if p.automatic else "open") if p.open else "closed", p.problem or "",
            )
            for name, p in found
        ],
    )  # fmt: skip
    return 0


def _add(options: argparse.Namespace) -> int:
    helper = client()
    for wanted in options.ports:
        consent = agreed(helper, options.name, ports=[wanted], yes=options.yes)
        helper.port_add(options.name, wanted, consent=consent)
    return 0


def _remove(options: argparse.Namespace) -> int:
    helper = client()
    for unwanted in options.ports:
        helper.port_remove(options.name, unwanted)
    return 0
