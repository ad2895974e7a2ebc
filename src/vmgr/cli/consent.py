"""Asking at the terminal before something of this computer is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.cli.confirming import can_be_asked, confirmed
from vmgr.errors import ConsentError

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
    if found.agreed or not can_be_asked():
        return found.agreed
    if all(confirmed(f"vmgr: {question}?") for question in found.questions):
        return True
    raise ConsentError("you did not agree to that, so nothing was done")
