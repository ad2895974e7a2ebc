"""A person's own part of the loopback network: no two people's machines have the same address.

All of 127.0.0.0/8 is on the loopback device, so nothing has to be set up. Everybody's part follows
from their user id alone: nobody has to be asked, and what was written into a resolver's
configuration stays true.
"""

from __future__ import annotations

import ipaddress
from typing import Final

__all__ = ["DOMAIN", "loopback_network", "names_address"]

DOMAIN: Final = "vmgr.internal"
_ROOT: Final = 117
_FIRST: Final = 118  # "v"
_PARTS: Final = 100
_FIRST_PERSON: Final = 1_000  # UID_MIN, login.defs(5)


def loopback_network(uid: int) -> ipaddress.IPv4Network:
    """Where a user's machines have their addresses on this computer.

    The hundredth person after one has the same; there the later port is told that it is taken.
    """
    second = _ROOT if uid == 0 else _FIRST + (uid - _FIRST_PERSON) % _PARTS
    return ipaddress.IPv4Network((f"127.{second}.0.0", 16))


def names_address(uid: int) -> str:
    """Where this computer asks for the names of a user's machines."""
    return str(loopback_network(uid)[1])
