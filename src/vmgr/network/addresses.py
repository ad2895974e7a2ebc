"""A machine's addresses, from its number and its id.

IPv4 comes from 198.18.0.0/15, which RFC 2544 keeps for benchmarks: no LAN, VPN or provider uses it.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.loopback import loopback_network

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FIRST",
    "GATEWAY4",
    "TEMPLATE",
    "Identity",
    "free_number",
    "identity_of",
]

GATEWAY4: Final = ipaddress.IPv4Address("198.19.0.1")
GATEWAY6: Final = ipaddress.IPv6Address("fe80::1")
FIRST: Final = 10
_LAST: Final = 32_000
TEMPLATE: Final = _LAST
"""The number of the machine that a template is made of; there is one at a time."""
_NETWORK4: Final = ipaddress.IPv4Address("198.19.0.0")
_NETWORK6: Final = ipaddress.IPv6Address("fd76:6d67:7200::")


@dataclass(frozen=True)
class Identity:
    """What a machine is in the network."""

    mac: bytes
    address4: ipaddress.IPv4Address
    address6: ipaddress.IPv6Address
    loopback: ipaddress.IPv4Address
    """Its own address on this computer's loopback device."""


def identity_of(machine_id: str, number: int) -> Identity:
    """The addresses of a machine.

    Args:
        machine_id: its id, 12 hexadecimal digits.
        number: its number among this user's machines, from `FIRST` on.
    """
    raw = bytes.fromhex(machine_id)
    # Locally administered, and for one receiver: the two lowest bits of the first byte.
    mac = bytes([raw[0] & 0xFC | 0x02]) + raw[1:]
    loopback = loopback_network(os.getuid())[number]
    return Identity(mac, _NETWORK4 + number, _NETWORK6 + number, loopback)


def free_number(taken: Iterable[int | None]) -> int:
    """The smallest number that no machine has."""
    used = set(taken)
    return next(number for number in range(FIRST, _LAST) if number not in used)
