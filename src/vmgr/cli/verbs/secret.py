"""`vmgr secret`: keep secrets for commands in machines."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import print_json, table
from vmgr.cli.parser import Parser
from vmgr.errors import UsageError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Keep secrets (tokens, passwords, keys) on this computer and give them to single
commands in machines: vmgr exec --secret NAME. They are kept by your desktop's keyring where there
is one, else in files that only you can read."""
EXAMPLES = """examples:
  vmgr secret set TOKEN               # asks for it; or reads it from standard input
  vmgr exec --secret TOKEN web -- ./deploy
  vmgr run --secret key:id_ed25519 -- ssh -i /run/secrets/id_ed25519 host
  vmgr secret rm TOKEN"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="secret_verb", parser_class=Parser
    )
    setting = verbs.add_parser("set", help="keep one", description="Keep a secret.")
    setting.add_argument("name", metavar="NAME", help="what to call it")
    setting.set_defaults(action=_set)
    listing = verbs.add_parser("ls", help="list them", description="List secrets, no values.")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(action=_list)
    removing = verbs.add_parser("rm", help="forget some", description="Forget secrets.")
    removing.add_argument("names", metavar="NAME", nargs="+", help="what they are called")
    removing.set_defaults(action=_remove)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _set(options: argparse.Namespace) -> int:
    if os.isatty(0):
        import getpass

        value = getpass.getpass(f"{options.name}: ")
    else:
        try:
            value = sys.stdin.buffer.read(1 << 20).decode()
        except UnicodeDecodeError:
            raise UsageError(
                "the secret is not UTF-8", next_step="encode it first, with base64 say"
            ) from None
        # What `echo` and editors add is not meant.
        if value.count("\n") == 1:
            value = value.removesuffix("\n")
    client().secret_set(options.name, value)
    return 0


def _list(options: argparse.Namespace) -> int:
    secrets = client().secret_list()
    if options.json:
        print_json(secrets)
    else:
        table(("NAME", "KEPT IN"), [(secret.name, secret.store) for secret in secrets])
    return 0


def _remove(options: argparse.Namespace) -> int:
    helper = client()
    for name in options.names:
        helper.secret_remove(name)
    return 0
