"""What the shell's completion script calls: all verbs' parsers, and names from a running helper."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable  # noqa: TC003 (in the type of a constant)
from typing import TYPE_CHECKING, Final, NoReturn

import argcomplete

from vmgr.cli.main import build_parser
from vmgr.cli.verbs import VERBS
from vmgr.client.sync import Client
from vmgr.errors import VmgrError

if TYPE_CHECKING:
    from argcomplete.completers import BaseCompleter

__all__ = ["complete", "full_parser", "names_of"]

_DEADLINE = 2.0  # seconds; a person waits for the key they pressed


def complete() -> NoReturn:
    """Answer the completion request in the environment; the process ends with it."""
    argcomplete.autocomplete(full_parser())
    os._exit(0)


def full_parser() -> argparse.ArgumentParser:
    """One parser with every verb, and completers where arguments name a kind of thing."""
    parser = argparse.ArgumentParser(prog="vmgr")
    verbs = parser.add_subparsers()
    for verb, about in VERBS.items():
        made = build_parser(verb)
        _give_completers(made)
        verbs.add_parser(
            verb, help=about.summary, parents=[made], add_help=False, conflict_handler="resolve"
        )
    return parser


_NAMES: Final[dict[str, Callable[[Client], list[str]]]] = {
    "machines": lambda client: [machine.name for machine in client.machine_list()],
    "places": lambda client: [f"{machine.name}:" for machine in client.machine_list()],
    "images": lambda client: [name for image in client.image_list() for name in image.names],
    "snapshots": lambda client: [snapshot.name for snapshot in client.snapshot_list()],
    "templates": lambda client: [template.key[:12] for template in client.template_list()],
    "volumes": lambda client: [volume.name for volume in client.volume_list()],
    "settings": lambda client: [entry.key for entry in client.config_list()],
}


def names_of(kind: str) -> list[str]:
    """The names of all `machines`, `images` and so on; none where no helper runs."""
    try:
        return _NAMES[kind](Client(launch=False, timeout=_DEADLINE))
    except (VmgrError, OSError):
        return []


def _give_completers(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:  # noqa: SLF001 (argparse has no public way to walk a parser)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 (likewise)
            for inner in action.choices.values():
                _give_completers(inner)
        kind = getattr(action, "completer", None)
        if isinstance(kind, str):
            action.completer = _completer(kind)  # type: ignore[attr-defined]  # argcomplete's way


def _completer(kind: str) -> BaseCompleter:
    def names(**_: object) -> list[str]:
        return names_of(kind)

    return names  # type: ignore[return-value]  # a function will do, says argcomplete
