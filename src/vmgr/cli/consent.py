"""Asking at the terminal before something of this computer is opened."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vmgr.cli.output import printable
from vmgr.errors import CancelledByUserError, ConsentError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vmgr.api.models import PortForward
    from vmgr.api.shares import Share
    from vmgr.client.sync import Client

__all__ = ["agreed", "yes_option"]


def yes_option(parser: argparse._ActionsContainer) -> None:
    """Declare the answer given beforehand."""
    parser.add_argument(
        "-y", "--yes", action="store_true",
        help="do not ask about directories outside your home and ports open to other computers",
    )  # fmt: skip


def agreed(
    helper: Client,
    machine: str | None,
    shares: Sequence[Share] = (),
    ports: Sequence[PortForward] = (),
    *,
    yes: bool,
) -> bool:
    """Whether the person agrees to this; False: it was not asked, and the helper decides.

    Raises:
        ConsentError: they do not.
        CancelledByUserError: Ctrl-C, or the end of what is typed.
    """
    if yes or not (shares or ports):
        return yes
    from vmgr.api.consent import Opening

    found = helper.consent(Opening(machine=machine, shares=list(shares), ports=list(ports)))
    if found.agreed or not (os.isatty(0) and os.isatty(2)):
        return found.agreed
    for question in found.questions:
        sys.stderr.write(f"vmgr: {printable(question)}? [y/N] ")
        sys.stderr.flush()
        try:
            said = sys.stdin.readline()
        except KeyboardInterrupt:
            raise CancelledByUserError("nothing was done") from None
        if said.strip().lower() not in {"y", "yes"}:
            raise ConsentError("you did not agree to that, so nothing was done")
    return True
