"""`vmgr authorize`: answer what machines ask."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

from vmgr.cli.asking import Asking
from vmgr.cli.connection import client
from vmgr.cli.output import note
from vmgr.cli.signals import SignalPipe
from vmgr.errors import HelperUnavailableError, UsageError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Answer what machines may do where you are asked (vmgr host-commands NAME ask), in
this terminal, until Ctrl-C. A terminal of vmgr shell or vmgr exec -t asks by itself about its own
machine."""
EXAMPLES = """examples:
  vmgr authorize
  vmgr authorize web                  # about one machine"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine = parser.add_argument("name", metavar="NAME", nargs="?", help="about this machine")
    parser.add_argument(
        "--polkit-policy", action="store_true",
        help="print the file with which polkit asks you instead; see docs/host-commands.md",
    )  # fmt: skip
    machine.completer = "machines"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    if options.polkit_policy:
        from vmgr.authorization.policy import policy

        print(policy(os.getuid()), end="")
        return 0
    if not os.isatty(0):
        raise UsageError("questions are answered at a terminal, and standard input is none")
    terminal = os.open(os.ttyname(0), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    asking = Asking(client().authorize(options.name), terminal, shared=False)
    note("vmgr: waiting for questions; Ctrl-C ends this")
    try:
        with SignalPipe(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            return _loop(asking, terminal, signals)
    finally:
        asking.close()
        os.close(terminal)


def _loop(asking: Asking, terminal: int, signals: SignalPipe) -> int:
    while not asking.closed:
        poll = select.poll()
        for fd in (signals.fileno(), asking.fileno(), *([terminal] if asking.active else [])):
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll())
        for number in signals.take() if signals.fileno() in ready else ():
            if number != signal.SIGINT or not asking.active:
                return 128 + number
            asking.refuse()
        if terminal in ready and asking.active:
            asking.read()
        if asking.fileno() in ready:
            asking.news()
    raise HelperUnavailableError("the helper has stopped", next_step="call vmgr authorize again")
