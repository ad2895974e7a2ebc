"""The `vmgr` command: finds the verb, imports it alone, and ends with its exit code.

Start-up is part of the cost of every command, so nothing is imported here that not every verb
needs, and the process ends without tearing the interpreter down.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from vmgr.cli.exits import guarded
from vmgr.cli.verbs import GROUPS, VERBS
from vmgr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmgr.cli.parser import Parser

__all__ = ["build_parser", "main", "run"]


def main() -> NoReturn:
    """Run the command of `sys.argv`; the process ends with it."""
    # A collection during imports finds nothing: all of it stays. (A tenth of the start-up time.)
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # see `vmgr.cli`
    _open_standard_fds()
    if "_ARGCOMPLETE" in os.environ:
        from vmgr.cli.completing import complete

        complete()
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line and give its exit code."""
    verb = argv[0] if argv else "--help"
    known = VERBS.get(verb)
    own_failure = 1 if known is None else known.own_failure
    return guarded(lambda: _run(verb, argv[1:]), own_failure=own_failure)


def build_parser(verb: str) -> Parser:
    """The parser of one verb, whose module is imported."""
    from vmgr.cli.parser import Parser

    module = importlib.import_module(f"vmgr.cli.verbs.{verb.replace('-', '_')}")
    parser = Parser(prog=f"vmgr {verb}", description=module.DESCRIPTION, epilog=module.EXAMPLES)
    module.arguments(parser)
    parser.set_defaults(execute=module.execute)
    return parser


def _run(verb: str, argv: Sequence[str]) -> int:
    if verb in {"-h", "--help", "help"}:
        if verb == "help" and argv:
            return _run(argv[0], ["--help"])
        print(overview())
        return 0
    if verb in {"-V", "--version"}:
        verb = "version"
    if verb not in VERBS:
        raise _unknown(verb)

    from vmgr.cli.parser import split_command

    parser = build_parser(verb)
    takes_command = parser.get_default("takes_command")
    ours, command = split_command(argv) if takes_command else (list(argv), None)
    try:
        options = parser.parse_args(ours)
    except SystemExit as end:  # --help has been printed
        return int(end.code or 0)
    options.after_dashes = command
    gc.freeze()
    gc.enable()
    code: int = options.execute(options)
    return code


def overview() -> str:
    """The help for `vmgr` without arguments."""
    width = max(map(len, VERBS)) + 2
    lines = ["Runs Linux machines of your own, with or without hardware virtualization.", ""]
    lines.append("Usage: vmgr VERB [ARGUMENT...]")
    for group in GROUPS:
        lines += ["", f"{group}:"]
        lines += [f"  {n:<{width}}{v.summary}" for n, v in VERBS.items() if v.group == group]
    lines += [
        "",
        "Begin with:",
        "  vmgr run -- uname -a        a command in a fresh machine",
        "  vmgr create web             a machine of your own, then: vmgr start web",
        "  vmgr VERB --help            all about one verb",
    ]
    return "\n".join(lines)


def _unknown(verb: str) -> UsageError:
    from difflib import get_close_matches

    if verb.startswith("-"):
        return UsageError(f'unknown option "{verb}"', next_step='see "vmgr --help"')
    near = get_close_matches(verb, VERBS, n=1)
    step = f'use "vmgr {near[0]}", or see "vmgr --help"' if near else 'see "vmgr --help"'
    return UsageError(f'there is no verb "{verb}"', next_step=step)


def _open_standard_fds() -> None:
    """Put /dev/null where a standard fd is closed, so that no socket of ours gets its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python has None for those; everything here relies on a stream.
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where a language has no such character
            stream.reconfigure(errors="replace")
