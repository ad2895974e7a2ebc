"""`vmgr net`: what a machine may reach."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmgr.api.models import NetworkChange
from vmgr.cli.connection import client
from vmgr.cli.output import age, fields, print_json, table
from vmgr.cli.parser import Parser, allow_option, host_access_option, machine_argument, net_option

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import Denied, MachineInfo, NetworkInfo

DESCRIPTION = """Show and change what a machine may reach; a machine that runs is held to it at
once. With an allow-list it reaches what is on the list and nothing else: domains (*.example.org is
all below example.org), addresses and networks, whole or a port of them. What it is denied is
refused at once and shown here and in vmgr events."""
EXAMPLES = """examples:
  vmgr net show web
  vmgr net allow web example.org:443 '*.example.net'
  vmgr net disallow web example.org:443
  vmgr net set web --net internet --allow-any
  vmgr net set web --host-access 5432  # its host.vmgr.internal:5432 is this computer's"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="net_verb", parser_class=Parser
    )
    for name, action, summary in (
        ("show", _show, "show it, and what was denied lately"),
        ("set", _set, "change it"),
        ("allow", _allow, "add to the allow-list, or begin one"),
        ("disallow", _disallow, "take from the allow-list"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".")
        verb.set_defaults(action=action)
        verb.add_argument("--json", action="store_true", help="as JSON")
        machine_argument(verb)
        if name in {"allow", "disallow"}:
            verb.add_argument(
                "rules", metavar="DOMAIN|ADDRESS|CIDR[:PORT][/udp]", nargs="+", help="which"
            )
        if name == "set":
            net_option(verb)
            host_access_option(verb, none=True)
            either = verb.add_mutually_exclusive_group()
            allow_option(either)
            either.add_argument(
                "--allow-any", action="store_true", help="have no allow-list any more"
            )


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    machine: MachineInfo = options.action(options)
    if options.json:
        print_json(machine.network)
    elif options.net_verb == "show":
        _print(machine)
    return 0


def _show(options: argparse.Namespace) -> MachineInfo:
    return client().machine_info(options.name)


def _set(options: argparse.Namespace) -> MachineInfo:
    return client().network_change(
        options.name,
        NetworkChange(
            access=options.net,
            allow=options.allow,
            allow_any=options.allow_any,
            host_access=options.host_access and options.host_access.tcp,
            host_access_udp=options.host_access and options.host_access.udp,
        ),
    )


def _allow(options: argparse.Namespace) -> MachineInfo:
    return client().network_change(options.name, NetworkChange(add=options.rules))


def _disallow(options: argparse.Namespace) -> MachineInfo:
    return client().network_change(options.name, NetworkChange(remove=options.rules))


def _print(machine: MachineInfo) -> None:
    network = machine.network
    if network is None:
        return
    fields([
        ("Network", network.access),
        ("Allowed", "anything" if network.allow is None else ", ".join(network.allow) or "nothing"),
        ("Host ports", host_ports(network) or "none"),
    ])  # fmt: skip
    if network.denied:
        print()
        now = time.time()
        table(
            ("DENIED", "PORT", "PROTOCOL", "TIMES", "LAST"),
            [
                (what(one), one.port or "", one.protocol, one.count,
                 f"{age(now - one.last_at)} ago")
                for one in network.denied
            ],
        )  # fmt: skip


def host_ports(network: NetworkInfo) -> str:
    """The ports of this computer that a machine reaches."""
    return ", ".join(
        [*map(str, network.host_access), *(f"{p}/udp" for p in network.host_access_udp)]
    )


def what(denied: Denied) -> str:
    """What was denied, in words."""
    if denied.name and denied.address:
        return f"{denied.name} ({denied.address})"
    return denied.name or denied.address or "others"
