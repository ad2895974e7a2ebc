"""`vmgr snapshot`: machines as they were at one moment."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vmgr.api.snapshots import SnapshotExport, SnapshotImport
from vmgr.cli.connection import client
from vmgr.cli.output import age, bytes_text, print_json, table
from vmgr.cli.parser import Parser, machine_argument
from vmgr.cli.progress import ProgressLine
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Take, list, restore, remove, export and import snapshots. A snapshot of a running
machine has its memory too: restored, what ran in it goes on from that moment. The machine stands
still for a fraction of a second while it is taken. Snapshots are written MACHINE:TAG, and
`vmgr create --from MACHINE:TAG NEW` makes a machine of its own from one, which is also what to do
with one that came in a file."""
EXAMPLES = """examples:
  vmgr snapshot create web before-upgrade
  vmgr snapshot ls web
  vmgr snapshot restore -f web:before-upgrade
  vmgr create --from web:before-upgrade trial
  vmgr snapshot export web:before-upgrade web.snapshot
  vmgr snapshot import web.snapshot web:theirs"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="snapshot_verb", parser_class=Parser
    )

    def verb(name: str, action: object, summary: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
        made.set_defaults(action=action)
        return made

    create = verb("create", _create, "take a snapshot; its name is printed")
    machine_argument(create)
    create.add_argument("tag", metavar="TAG", nargs="?", help="what to call it; else the time")
    listing = verb("ls", _list, "list snapshots")
    of = listing.add_argument("name", metavar="NAME", nargs="?", help="only this machine's")
    of.completer = "machines"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    restore = verb("restore", _restore, "make a machine what it was")
    restore.add_argument(
        "-f", "--force", action="store_true", help="end the machine first where it runs"
    )
    export = verb("export", _export, "write a snapshot to one file, for another computer")
    metavar = "MACHINE:TAG"
    exported = export.add_argument("snapshot", metavar=metavar, help="a snapshot")
    export.add_argument("file", metavar="FILE", help="the new file")
    export.add_argument("-f", "--force", action="store_true", help="replace a file that is there")
    export.add_argument(
        "--without-image", action="store_true",
        help="leave out image and kernel, for a computer that has the same ones",
    )  # fmt: skip
    source = verb("import", _import, "take a snapshot from a file; its name is printed")
    source.add_argument("file", metavar="FILE", help="what export wrote")
    source.add_argument("name", metavar=metavar, nargs="?", help="what to call it; else as it was")
    for made in (export, source):
        made.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    for made in (create, listing, restore, export, source):
        made.add_argument("--json", action="store_true", help="as JSON")
    remove = verb("rm", _remove, "remove snapshots")
    for name in (
        exported,
        restore.add_argument("snapshot", metavar=metavar, help="a snapshot"),
        remove.add_argument("snapshots", metavar=metavar, nargs="+", help="snapshots"),
    ):
        name.completer = "snapshots"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _create(options: argparse.Namespace) -> int:
    made = client().snapshot_create(options.name, options.tag)
    if options.json:
        print_json(made)
    else:
        print(made.name)
    return 0


def _list(options: argparse.Namespace) -> int:
    snapshots = client().snapshot_list(options.name)
    if options.json:
        print_json(snapshots)
        return 0
    now = time.time()
    table(
        ("SNAPSHOT", "TAKEN", "OF", "MEMORY", "SIZE"),
        [
            (
                s.name, f"{age(now - s.created_at)} ago",
                "memory and disk" if s.memory else "disk",
                bytes_text(s.memory_bytes), bytes_text(s.size_bytes),
            )
            for s in snapshots
        ],
    )  # fmt: skip
    return 0


def _restore(options: argparse.Namespace) -> int:
    machine = client().snapshot_restore(options.snapshot, force=options.force)
    if options.json:
        print_json(machine)
    else:
        print(f"{machine.name} {machine.status}")
    return 0


def _export(options: argparse.Namespace) -> int:
    request = SnapshotExport(
        snapshot=options.snapshot,
        path=os.path.abspath(options.file),  # noqa: PTH100 (links stay as the person named them)
        force=options.force,
        without_image=options.without_image,
    )
    with ProgressLine(quiet=options.quiet) as progress:
        made = client().snapshot_export(request, progress.show)
    if options.json:
        print_json(made)
    else:
        print(f"{made.snapshot} is in {options.file} ({bytes_text(made.size_bytes)})")
    return 0


def _import(options: argparse.Namespace) -> int:
    request = SnapshotImport(
        path=os.path.abspath(options.file),  # noqa: PTH100 (as above)
        name=options.name,
    )
    with ProgressLine(quiet=options.quiet) as progress:
        made = client().snapshot_import(request, progress.show)
    if options.json:
        print_json(made)
    else:
        print(made.name)
    return 0


def _remove(options: argparse.Namespace) -> int:
    helper = client()

    def remove(name: str) -> str:
        removed = helper.snapshot_remove(name)
        return f"removed {removed.name} ({bytes_text(removed.size_bytes)})"

    return for_each(options.snapshots, remove)
