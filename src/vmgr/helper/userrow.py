"""The person's account in a machine, as the machine's row keeps it."""

from __future__ import annotations

import msgspec

__all__ = ["UserRow", "user_notes"]


class UserRow(msgspec.Struct, kw_only=True, frozen=True):
    """The account that a machine is to have, and what became of it."""

    name: str
    uid: int
    gid: int
    group: str
    shell: str
    locale: str
    state: str | None = None
    """What the agent said; None: it has not been asked yet."""
    run_as: str | None = None
    """Commands run as this user by themselves; None: as the image's."""
    sudo: bool = False
    lang: str = ""


def user_notes(user: UserRow | None) -> list[str]:
    """What the person should know of it."""
    if user is None or user.state is None:
        return []
    if user.run_as is None:
        return [f"it has no account {user.name}; commands run as its image's user"]
    if user.sudo:
        return []
    return [f"it has no sudo: as root, a command is run with -u root, not by {user.run_as}"]
