"""Where a port leads to; the rest is seen on machines (tests/network/test_automatic.py)."""

from __future__ import annotations

import ipaddress

import pytest

from vmgr.agent import PortListener
from vmgr.helper.automatic import Target, targets
from vmgr.helper.serving import AGENT
from vmgr.network import identity_of

ME = identity_of("0123456789ab", 10)
FOUR, SIX = str(ME.address4), str(ME.address6)


def listener(address: str, *, only6: bool = False) -> PortListener:
    return PortListener("tcp", 80, ipaddress.ip_address(address), only6)


def inside(*addresses: str) -> Target:
    return Target(AGENT, tuple(ipaddress.ip_address(address).packed for address in addresses))


@pytest.mark.parametrize(
    ("listeners", "direct", "through"),
    [
        ([listener("0.0.0.0")], Target(FOUR), inside("127.0.0.1")),  # noqa: S104 (in the machine)
        ([listener("::")], Target(FOUR), inside("127.0.0.1")),
        ([listener("::", only6=True)], Target(SIX), inside("::1")),
        ([listener(FOUR)], Target(FOUR), inside(FOUR)),
        ([listener(SIX)], Target(SIX), inside(SIX)),
        ([listener("127.0.0.1")], inside("127.0.0.1"), inside("127.0.0.1")),
        ([listener("::1"), listener("127.0.0.1")], *[inside("127.0.0.1", "::1")] * 2),
        ([listener("172.17.0.1"), listener("127.0.0.1")], *[inside("127.0.0.1", "172.17.0.1")] * 2),
        ([listener("127.0.0.1"), listener(FOUR)], Target(FOUR), inside("127.0.0.1", FOUR)),
    ],
)
def test_a_port_leads_to_who_listens(
    listeners: list[PortListener], direct: Target, through: Target
) -> None:
    assert targets(listeners, ME, direct=True) == {("tcp", 80): direct}
    assert targets(listeners, ME, direct=False) == {("tcp", 80): through}


def test_addresses_that_need_more_than_a_number_lead_nowhere() -> None:
    assert targets([listener("fe80::1"), listener("224.0.0.1")], ME, direct=True) == {}
