from __future__ import annotations

import ipaddress

from vmgr.network.addresses import FIRST, free_number, identity_of


def test_addresses_follow_from_number_and_id() -> None:
    identity = identity_of("ff00deadbeef", FIRST)
    assert identity.mac[0] & 0b11 == 0b10, "local, for one receiver"
    assert identity.mac[1:] == bytes.fromhex("00deadbeef")
    assert identity.address4 in ipaddress.ip_network("198.19.0.0/17")
    assert identity.loopback.is_loopback


def test_the_smallest_free_number_is_taken() -> None:
    assert free_number([]) == FIRST
    assert free_number([FIRST, FIRST + 2, None]) == FIRST + 1
