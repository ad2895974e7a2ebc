"""What is in a machine's directory, for people and for programs."""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING, Final

from vmgr.cli.connection import client
from vmgr.cli.copy.place import in_machine
from vmgr.cli.copy.transfer import Remote
from vmgr.cli.output import aligned, note, print_json, printable

if TYPE_CHECKING:
    import argparse

    from vmgr.cli.copy.transfer import Entry

__all__ = ["show_files"]

_KINDS: Final = {
    "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR, "block": stat.S_IFBLK,
}  # fmt: skip


def show_files(options: argparse.Namespace) -> int:
    """List the places that `options` names."""
    places = [in_machine(text) for text in options.places]
    helper = client()
    problems: list[str] = []

    def problem(line: str) -> None:
        problems.append(line)
        note(f"vmgr: {printable(line)}")

    shown = []
    for (machine, path), text in zip(places, options.places, strict=True):
        before = len(problems)
        entries = Remote(helper, machine, options.user, problem).entries(path)
        if options.json:
            shown += entries
            continue
        if len(places) > 1 and len(problems) == before:
            print(f"{printable(text)}:")
        for line in _lines(entries, long=options.long, hidden=options.all):
            print(line)
    if options.json:
        print_json(shown)
    return 1 if problems else 0


def _lines(entries: list[Entry], *, long: bool, hidden: bool) -> list[str]:
    seen = [e for e in entries if hidden or not e.name.startswith(".")]
    if not long:
        return [printable(entry.name) for entry in seen]
    rows = [
        (
            stat.filemode(_KINDS.get(entry.kind, stat.S_IFREG) | entry.mode),
            entry.user, entry.group, entry.size,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime)),
            entry.name if entry.target is None else f"{entry.name} -> {entry.target}",
        )
        for entry in seen
    ]  # fmt: skip
    return aligned(("MODE", "USER", "GROUP", "SIZE", "MODIFIED", "NAME"), rows, right={3})
