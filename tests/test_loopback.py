"""Everybody's own part of the loopback network."""

from __future__ import annotations

from vmgr.loopback import loopback_network, names_address


def test_people_of_one_computer_do_not_meet() -> None:
    people = [0, *range(1_000, 1_100)]
    parts = {loopback_network(uid) for uid in people}
    assert len(parts) == len(people)
    assert all(part.is_loopback and part.num_addresses == 65_536 for part in parts)


def test_it_stays_what_was_written_into_a_resolvers_configuration() -> None:
    assert names_address(0) == "127.117.0.1"
    assert names_address(1_000) == "127.118.0.1"
    assert names_address(1_001) == "127.119.0.1"
    assert names_address(1_099) == "127.217.0.1"
    assert names_address(999) == "127.217.0.1"
