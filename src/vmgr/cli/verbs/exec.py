"""`vmgr exec`: run a command in a running machine."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from vmgr.api.models import ExecSpec
from vmgr.cli.connection import client
from vmgr.cli.parser import command_of, environment, machine_argument, secret
from vmgr.cli.progress import ProgressLine
from vmgr.cli.session import Session
from vmgr.cli.terminal import environment_for_terminal, terminal_size
from vmgr.errors import UsageError

if TYPE_CHECKING:
    from vmgr.client.job import Job

DESCRIPTION = """Run a command in a running machine, with its output, its input and its exit code
passed through. A command that a signal ended gives 128 plus the signal's number; 125 is a failure
of vmgr, 126 a command that cannot be executed, 127 one that was not found."""
EXAMPLES = """examples:
  vmgr exec web -- uname -a
  vmgr exec -t web -- top
  tar c . | vmgr exec web -- tar x -C /srv
  vmgr exec -d web -- sleep 1000      # see it with: vmgr jobs web"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    command_options(parser)
    parser.add_argument(
        "-d", "--detach", action="store_true", help="leave it running; print its job number"
    )
    machine_argument(parser)
    parser.add_argument(
        "command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="program and arguments"
    )
    parser.set_defaults(takes_command=True)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    command = command_of(options.command, options.after_dashes)
    if not command:
        raise UsageError(
            "the command is missing",
            next_step=f'say it as in "vmgr exec {options.name} -- COMMAND"',
        )
    spec = command_spec(options, command, tty=options.tty, detached=options.detach)
    with ProgressLine() as progress:
        helper = client()
        job = helper.exec(options.name, spec)
        if options.detach:
            return _detach(job)
        return Session(
            job,
            stdin=0 if spec.stdin else None,
            tty=options.tty,
            progress=progress,
            questions=helper.authorize,
        ).run()


def command_options(parser: argparse.ArgumentParser) -> None:
    """Declare how a command is to run; `run` has these too."""
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument(
        "-i", "--interactive", action="store_true",
        help="give it our input, which is what happens anyway",
    )  # fmt: skip
    parser.add_argument("-n", "--no-stdin", action="store_true", help="give it no input")
    parser.add_argument(
        "-e", "--env", action="append", type=environment, default=[], metavar="NAME[=VALUE]",
        help="set a variable; without a value, to what it is here",
    )  # fmt: skip
    parser.add_argument(
        "--secret", action="append", type=secret, default=[], metavar="NAME[=VARIABLE|:PATH]",
        dest="secrets", help="give it a secret (vmgr secret), as a variable or a file below "
        "/run/secrets; may be given several times",
    )  # fmt: skip
    parser.add_argument("-w", "--workdir", metavar="DIR", help="its working directory")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="as whom it runs (root, say)")


def command_spec(
    options: argparse.Namespace, argv: list[str], *, tty: bool, detached: bool = False
) -> ExecSpec:
    """The command that the options describe."""
    env = environment_for_terminal() if tty else {}
    for name, value in options.env:
        if value is not None:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    for word in (*argv, *env.values()):
        if not word.isprintable():
            _check_utf8(word)
    return ExecSpec(
        argv=argv,
        env=env,
        cwd=options.workdir,
        user=options.user,
        tty=terminal_size(0, 1, 2) if tty else None,
        stdin=not options.no_stdin and not detached,
        detached=detached,
        secrets=getattr(options, "secrets", []),
    )


def _check_utf8(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UsageError("an argument is not UTF-8") from None


def _detach(job: Job) -> int:
    with job:
        while not job.stream.started:
            job.wait_events()
        # Said before the connection ends, whose end alone would hang the command up.
        job.stream.detach()
        print(job.stream.job)
    return 0
