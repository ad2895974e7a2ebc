"""`vmgr logs`: what a machine's console, its VMM and the helper said."""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import note
from vmgr.cli.parser import machine_argument
from vmgr.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

DESCRIPTION = "Show what a machine's console printed, or what its VMM or the helper said about it."
EXAMPLES = """examples:
  vmgr logs web
  vmgr logs -f web
  vmgr logs --source helper --tail 20 web"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    log_options(parser)
    parser.add_argument(
        "--source", choices=("console", "vmm", "helper"), default="console",
        help="whose log (default: console)",
    )  # fmt: skip
    machine_argument(parser)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    return print_log(
        client().machine_logs(
            options.name, source=options.source, follow=options.follow, tail=tail_of(options)
        )
    )


def log_options(parser: argparse.ArgumentParser) -> None:
    """Declare what part of a log is wanted; `helper logs` has these too."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    parser.add_argument(
        "-n", "--tail", type=int, metavar="LINES", help="only the last lines (default: all)"
    )


def tail_of(options: argparse.Namespace) -> int | None:
    """How many lines are wanted; None: all."""
    tail: int | None = options.tail
    if tail is not None and tail < 0:
        raise UsageError(f"{tail} is not a number of lines")
    return tail


def print_log(chunks: Iterator[bytes]) -> int:
    """Write a log to stdout as it comes; Ctrl-C ends it, as one expects of `-f`."""
    out = sys.stdout.buffer
    # A console can say anything; a terminal must not obey it.
    clean = Harmless().clean if sys.stdout.isatty() else bytes
    said = False
    try:
        for chunk in chunks:
            said = True
            out.write(clean(chunk))
            out.flush()
    except KeyboardInterrupt:
        return 130
    if not said and sys.stderr.isatty():
        note("vmgr: there is nothing in this log; a boot without trouble is quiet")
    return 0


class Harmless:
    """Takes out of a stream of UTF-8 what could steer a terminal: C0, and C1, which it encodes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def clean(self, data: bytes) -> bytes:
        """`data` without control characters but line breaks and tabs."""
        text = self._decoder.decode(data)
        return "".join(c for c in text if c in "\n\t" or c.isprintable()).encode()
