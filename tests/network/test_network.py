"""What the helper finds out of the host for the switchboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.network.hosts import host_addresses, host_addresses6

if TYPE_CHECKING:
    from pathlib import Path

TABLE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.17
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
     |-- 203.0.113.9
        /32 host LOCAL
     |-- 192.0.2.17
        /32 host LOCAL
"""


def test_the_hosts_own_addresses(tmp_path: Path) -> None:
    table = tmp_path / "fib_trie"
    table.write_text(TABLE)
    assert host_addresses(table) == ["192.0.2.17", "203.0.113.9"]


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    assert host_addresses(tmp_path / "none") == []


def test_this_host() -> None:
    assert not any(address.startswith("127.") for address in host_addresses())


def test_the_hosts_own_ipv6_addresses(tmp_path: Path) -> None:
    table = tmp_path / "if_inet6"
    table.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000000000000000001 02 40 20 80     eth0\n"
        "20010db8000000000000000000000001 02 40 00 80     eth0\n"
    )
    assert host_addresses6(table) == ["2001:db8::1"]
    assert host_addresses6(tmp_path / "none") == []
