"""What the shell's completion script calls: all verbs' parsers, and names from a running helper."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, NoReturn

import argcomplete

from vmgr.cli.main import build_parser
from vmgr.cli.verbs import VERBS
from vmgr.client.sync import Client
from vmgr.errors import VmgrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from argcomplete.completers import BaseCompleter

    type_of_names = Callable[[Client], list[str]]

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


def names_of(kind: str) -> list[str]:
    """The names of all `machines`, `images` or `settings`; none where no helper runs."""
    client = Client(launch=False, timeout=_DEADLINE)
    try:
        if kind == "machines":
            return [machine.name for machine in client.machine_list()]
        if kind == "images":
            return [name for image in client.image_list() for name in image.names]
        if kind == "snapshots":
            return [snapshot.name for snapshot in client.snapshot_list()]
        if kind == "templates":
            return [template.key[:12] for template in client.template_list()]
        if kind == "volumes":
            names = [volume.name for volume in client.volume_list()]
        else:
            names = [entry.key for entry in client.config_list()]
    except (VmgrError, OSError):
        return []
    return names


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
