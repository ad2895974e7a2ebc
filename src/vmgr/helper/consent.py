"""What the person has to agree to: directories outside their home, ports beyond loopback.

A slip of the keys, or a command copied from somewhere, opens more there than was meant. They are
asked by the desktop's own way where there is one, else by the client, at the terminal where the
command was typed; where there is neither, it is refused.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from vmgr.api.consent import Consent
from vmgr.errors import ConsentError
from vmgr.helper.ports import check_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmgr.api.consent import Opening
    from vmgr.api.models import CreateMachine, PortForward
    from vmgr.api.shares import Share
    from vmgr.helper.helper import Helper

__all__ = ["Consents"]


class Consents:
    """Whether the person agrees.

    Args:
        helper: its settings, and how they are asked.
    """

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    async def ask(self, opening: Opening) -> Consent:
        """Have the desktop ask, or say what the client is to ask.

        Raises:
            ConsentError: they were asked, and said no.
            UsageError, NotFoundError, ConflictError, ResourceError: it cannot be, agreed or not.
        """
        shares, ports = await self._questions(opening.machine, opening.shares, opening.ports)
        questions = [*shares, *ports]
        for question in list(questions):
            said = await self._helper.authorization.ask_desktop(opening.machine or "", question)
            if said is False:
                raise ConsentError("you did not agree to that", details={"question": question})
            if said is None:
                return Consent(agreed=False, questions=questions)
            questions.remove(question)
        return Consent(agreed=True)

    async def require(
        self, machine: str | None, shares: Sequence[Share], ports: Sequence[PortForward]
    ) -> None:
        """See that nothing is opened that the person would have to agree to.

        Raises:
            ConsentError: something is.
            UsageError, NotFoundError, ConflictError, ResourceError: it cannot be, agreed or not.
        """
        about_shares, about_ports = await self._questions(machine, shares, ports)
        for questions, what, key in (
            (about_shares, "shared", "authorize.shares"),
            (about_ports, "open to other computers", "authorize.ports"),
        ):
            if questions:
                raise ConsentError(
                    f"nobody was there to be asked: {questions[0]}",
                    next_step=f"call it at a terminal or with --yes, or have it never asked that "
                    f"something is {what}, with: vmgr config set {key} allow",
                )

    async def require_of(self, wanted: CreateMachine) -> None:
        """The same of a new machine."""
        if not wanted.consent:
            await self.require(wanted.name, wanted.shares, wanted.ports)

    async def _questions(
        self, machine: str | None, shares: Sequence[Share], ports: Sequence[PortForward]
    ) -> tuple[list[str], list[str]]:
        """What is to be asked about shares, and about ports."""
        if not (shares or ports):
            return [], []
        check_ports(ports)
        await self._helper.shares.check(shares)
        settings = await self._helper.settings()
        who = f"machine {machine}" if machine else "the new machine"
        outside: set[str] = set()
        if shares and settings.get("authorize.shares") == "ask":
            outside = await self._helper.executors.in_files(_outside_home, [s.host for s in shares])
        exposed: list[PortForward] = []
        if settings.get("authorize.ports") == "ask":
            exposed = [p for p in ports if not ipaddress.ip_address(p.address).is_loopback]
        return [
            f"{share.host} is outside your home; may {who} "
            f"{'read' if share.read_only else 'read and change'} what is in it"
            for share in shares
            if share.host in outside
        ], [
            f"port {port.host_port} of {who} is to be open to other computers, at "
            f"{port.address}; may it be"
            for port in exposed
        ]


def _outside_home(paths: Sequence[str]) -> set[str]:
    try:
        place = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container's number without a name
        place = os.environ.get("HOME", "/")
    home = Path(place).resolve()
    # Users of services have the root directory as theirs.
    if home == Path("/"):
        return set(paths)
    return {path for path in paths if not Path(path).resolve().is_relative_to(home)}
