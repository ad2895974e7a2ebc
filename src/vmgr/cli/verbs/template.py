"""`vmgr template`: saved machines, fully booted, from which new ones start."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmgr.api.models import CreateMachine
from vmgr.cli.connection import client
from vmgr.cli.output import age, bytes_text, print_json, table
from vmgr.cli.parser import Parser, machine_options
from vmgr.cli.progress import ProgressLine
from vmgr.cli.several import for_each

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """List, build and remove templates: machines that were booted and saved, from which
new machines of the same kind (image, CPUs, memory, disk) start in a blink. vmgr makes them by
itself after the first boot of a kind and removes those that were not used for longest; nothing is
lost with one."""
EXAMPLES = """examples:
  vmgr template ls
  vmgr template build --memory 512M debian
  vmgr template rm --all"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    verbs = parser.add_subparsers(
        metavar="VERB", required=True, dest="template_verb", parser_class=Parser
    )

    def verb(name: str, action: object, summary: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
        made.set_defaults(action=action)
        return made

    listing = verb("ls", _list, "list templates")
    build = verb("build", _build, "build the template for machines of a kind now")
    machine_options(build)
    build.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    image = build.add_argument("image", metavar="IMAGE", nargs="?", help="an image's name")
    image.completer = "images"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    for made in (listing, build):
        made.add_argument("--json", action="store_true", help="as JSON")
    remove = verb("rm", _remove, "remove templates")
    remove.add_argument("--all", action="store_true", help="all of them")
    keys = remove.add_argument("keys", metavar="KEY", nargs="*", help="the beginning of its key")
    keys.completer = "templates"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    remove.set_defaults(usage=remove.error)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    result: int = options.action(options)
    return result


def _list(options: argparse.Namespace) -> int:
    templates = client().template_list()
    if options.json:
        print_json(templates)
        return 0
    now = time.time()
    table(
        ("KEY", "IMAGE", "CPUS", "MEMORY", "DISK", "SIZE", "USED"),
        [
            (
                t.key[:12], t.image, t.cpus, bytes_text(t.memory_bytes), bytes_text(t.disk_bytes),
                bytes_text(t.size_bytes), f"{age(now - t.used_at)} ago",
            )
            for t in templates
        ],
    )  # fmt: skip
    return 0


def _build(options: argparse.Namespace) -> int:
    machine = CreateMachine(
        image=options.image,
        cpus=options.cpus,
        memory_bytes=options.memory,
        disk_bytes=options.disk,
    )
    with ProgressLine(quiet=options.quiet, delay=0) as progress:
        made = client().template_build(machine, progress.show)
    if options.json:
        print_json(made)
    else:
        print(made.key[:12])
    return 0


def _remove(options: argparse.Namespace) -> int:
    if options.all == bool(options.keys):
        options.usage("name the templates to remove, or give --all")
    helper = client()
    keys = options.keys or [t.key for t in helper.template_list()]

    def remove(key: str) -> str:
        removed = helper.template_remove(key)
        names = ", ".join(key[:12] for key in removed.removed)
        return f"removed {names} ({bytes_text(removed.freed_bytes)})"

    return for_each(keys, remove)
