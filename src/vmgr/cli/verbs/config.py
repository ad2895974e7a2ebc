"""`vmgr config`: settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmgr.cli.connection import client
from vmgr.cli.output import print_json, printable, table
from vmgr.cli.parser import Parser

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Show and change settings."
EXAMPLES = """examples:
  vmgr config ls
  vmgr config set machine.memory 2G
  vmgr config unset machine.memory"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="config_verb", parser_class=Parser
    )
    for name, action, summary in (
        ("ls", _list, "list all settings"),
        ("get", _get, "show one"),
        ("set", _set, "change one"),
        ("unset", _unset, "put one back to its default"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary)
        verb.add_argument("--json", action="store_true", help="as JSON")
        if name != "ls":
            key = verb.add_argument("key", metavar="KEY", help="the setting's name")
            key.completer = "settings"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
        if name == "set":
            verb.add_argument("value", metavar="VALUE", help="its new value")
        verb.set_defaults(action=action)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _list(options: argparse.Namespace) -> int:
    entries = client().config_list()
    if options.json:
        print_json(entries)
    else:
        table(
            ("KEY", "VALUE", "FROM", "MEANING"),
            [
                (e.key, _text(e.value), "you" if e.is_set else "default", e.description)
                for e in entries
            ],
        )
    return 0


def _get(options: argparse.Namespace) -> int:
    entry = client().config_get(options.key)
    if options.json:
        print_json(entry)
    else:
        print(printable(_text(entry.value)))
    return 0


def _set(options: argparse.Namespace) -> int:
    entry = client().config_set(options.key, options.value)
    if options.json:
        print_json(entry)
    return 0


def _unset(options: argparse.Namespace) -> int:
    entry = client().config_unset(options.key)
    if options.json:
        print_json(entry)
    return 0


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
