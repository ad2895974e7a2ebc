"""`vmgr api`: the API's own description."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.output import print_json

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Print the OpenAPI document of the helper's API, which is served on a unix socket
(see "vmgr helper status")."""
EXAMPLES = """examples:
  vmgr api >vmgr-openapi.json"""


def arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare its arguments: none."""


def execute(_options: argparse.Namespace) -> int:
    """Do it."""
    from vmgr.api.openapi import document

    print_json(document())
    return 0
