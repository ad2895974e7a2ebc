"""What machines may ask, and what they are told."""

from __future__ import annotations

from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from vmgr.switchboard.allowlist import Pin, is_private
from vmgr.switchboard.guard import Guard, matches
from vmgr.switchboard.messages import Plug, Rule

ADDRESS, ADDRESS6 = "198.19.0.10", "fd76:6d67:7200::a"


def plug(*domains: str, access: Any = "internet", **more: Any) -> Plug:
    rules = [Rule(domain=domain) for domain in domains]
    return Plug(
        machine="m", name="m", mac=b"", address4=ADDRESS, address6=ADDRESS6, interface="vm1",
        access=access, **{"rules": rules, **more},
    )  # fmt: skip


class Watched:
    """A guard, and what it did."""

    def __init__(self, plugged: Plug) -> None:
        self.pinned: list[tuple[str, Pin, str, int]] = []
        self.denied: list[dict[str, Any]] = []
        self.guard = Guard(
            lambda interface, pins: self.pinned.extend((interface, *pin) for pin in pins),
            lambda _, data: self.denied.append(data),
            lambda: ["203.0.113.200"],
        )
        self.guard.admit("vm1", plugged)

    def asks(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message | None:
        """The refusal, or None."""
        query = dns.message.make_query(name, kind, **options)
        wire = self.guard.refusal(ADDRESS, query)
        return None if wire is None else dns.message.from_wire(wire)

    def hears(self, name: str, *records: str, kind: str = "A") -> dns.message.Message:
        """What the machine hears of an answer."""
        reply = dns.message.make_response(dns.message.make_query(name, kind))
        reply.flags |= dns.flags.AD
        for record in records:
            owner, ttl, record_kind, data = record.split(" ", 3)
            reply.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", record_kind, data))
        return dns.message.from_wire(self.guard.pass_on(ADDRESS, reply.to_wire()))


def addresses(message: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in message.answer for item in rrset]


def test_domains() -> None:
    assert matches("example.org", "example.org")
    assert not matches("example.org", "www.example.org")
    assert matches("*.example.org", "www.example.org")
    assert matches("*.example.org", "a.b.example.org")
    for other in ("example.org", ".example.org", "badexample.org", "example.org.evil"):
        assert not matches("*.example.org", other), other


async def test_a_machine_asks_for_what_is_on_its_list() -> None:
    it = Watched(plug("a.example", "*.b.example"))
    for name in ("a.example", "A.Example", "x.b.example", "y.x.b.example"):
        assert it.asks(name) is None
    assert it.denied == []
    refused = it.asks("evil.example", use_edns=True)
    assert refused is not None
    assert refused.rcode() == dns.rcode.NXDOMAIN
    assert any(isinstance(o, dns.edns.EDEOption) for o in refused.options)
    assert it.denied == [{"name": "evil.example", "protocol": "dns"}]
    # Programs ask for these by themselves.
    for name in ("1.2.0.192.in-addr.arpa", "a.example.vmgr.internal"):
        assert it.asks(name) is not None
    assert len(it.denied) == 1
    hints = it.asks("a.example", "HTTPS")
    assert hints is not None
    assert (hints.rcode(), hints.answer) == (dns.rcode.NOERROR, [])


async def test_who_has_no_list_asks_for_anything() -> None:
    it = Watched(plug(rules=None))
    assert it.asks("evil.example") is None
    assert addresses(it.hears("lan.example", "lan.example. 5 A 192.168.1.1")) == ["192.168.1.1"]
    assert it.pinned == []
    assert it.guard.name_of("vm1", "192.168.1.1") == "lan.example"
    it = Watched(plug(rules=None, access="none", host_ports=[80]))
    assert it.asks("host.vmgr.internal") is None
    assert it.asks("evil.example") is not None


async def test_what_it_hears_is_pinned_first() -> None:
    rules = [
        Rule(domain="a.example", protocol="tcp", port=443),
        Rule(domain="*.example", protocol="udp", port=53),
    ]
    it = Watched(plug(rules=rules))
    heard = it.hears(
        "a.example",
        "a.example. 300 CNAME cdn.example.net.",
        "cdn.example.net. 20 A 203.0.113.1",
        "cdn.example.net. 20 A 203.0.113.2",
        "other.example.net. 20 A 203.0.113.3",
    )
    assert sorted(addresses(heard)) == ["203.0.113.1", "203.0.113.2", "cdn.example.net."]
    assert not heard.flags & dns.flags.AD
    assert {rrset.ttl for rrset in heard.answer} == {20}
    assert sorted(it.pinned, key=str) == [
        ("vm1", Pin(address, protocol, port), "a.example", 80)
        for address in ("203.0.113.1", "203.0.113.2")
        for protocol, port in (("tcp", 443), ("udp", 53))
    ]
    assert it.guard.name_of("vm1", "203.0.113.1") == "a.example"


async def test_a_long_answer_is_kept_no_longer_than_its_pin() -> None:
    it = Watched(plug("a.example"))
    heard = it.hears("a.example", "a.example. 600000 AAAA 2001:db8::1", kind="AAAA")
    assert heard.answer[0].ttl == 3_600
    assert it.pinned == [("vm1", Pin("2001:db8::1", None, None), "a.example", 3_660)]
    # A shorter one that follows takes nothing back.
    it.hears("a.example", "a.example. 0 AAAA 2001:db8::1", kind="AAAA")
    assert it.pinned[1][3] > 3_600


async def test_a_name_opens_no_lan() -> None:
    it = Watched(plug("a.example"))
    private = ("10.0.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "203.0.113.200")
    for address in private:
        heard = it.hears("a.example", f"a.example. 5 A {address}", "a.example. 5 A 203.0.113.1")
        assert addresses(heard) == ["203.0.113.1"]
        assert it.denied[-1] == {"name": "a.example", "address": address, "protocol": "dns"}
    assert {pin.address for _, pin, _, _ in it.pinned} == {"203.0.113.1"}
    it = Watched(plug("a.example", access="full"))
    assert addresses(it.hears("a.example", "a.example. 5 A 10.0.0.1")) == ["10.0.0.1"]


@pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "fd00::2",
                                     "fe80::1", "::1", "ff02::1"])  # fmt: skip
def test_private_addresses_in_ipv6(address: str) -> None:
    assert is_private(address)
    assert not is_private("2001:db8::1")


async def test_pins_are_bounded() -> None:
    it = Watched(plug("*.example"))
    for number in range(4_096):
        address = f"203.0.{number // 200}.{number % 200 + 1}"
        it.hears(f"n{number}.example", f"n{number}.example. 60 A {address}")
    assert len(it.pinned) == 4_096
    heard = it.hears("last.example", "last.example. 60 A 203.0.113.250")
    assert (heard.rcode(), heard.answer) == (dns.rcode.SERVFAIL, [])


async def test_a_changed_list_keeps_what_is_still_on_it() -> None:
    it = Watched(plug("a.example", "b.example"))
    it.hears("a.example", "a.example. 60 A 203.0.113.1")
    it.hears("b.example", "b.example. 60 A 203.0.113.2")
    it.pinned.clear()
    it.guard.admit("vm1", plug("a.example"))
    assert [(pin.address, name) for _, pin, name, _ in it.pinned] == [("203.0.113.1", "a.example")]


async def test_another_switchboard_goes_on_with_the_pins() -> None:
    it = Watched(plug(rules=None))
    pin = Pin("203.0.113.1", None, None)
    it.guard.recover([("vm2", pin, "a.example", 50), ("vm3", pin, "a.example", 50)])
    it.guard.admit("vm2", plug("a.example"))
    it.guard.admit("vm3", plug("other.example"))
    assert [(where, name) for where, _, name, _ in it.pinned] == [("vm2", "a.example")]


async def test_a_stranger_is_refused() -> None:
    wire = Watched(plug()).guard.refusal("198.19.0.99", dns.message.make_query("a.example", "A"))
    assert wire is not None
    assert dns.message.from_wire(wire).rcode() == dns.rcode.REFUSED


async def test_what_cannot_be_read_is_not_passed_on() -> None:
    it = Watched(plug("a.example"))
    assert it.guard.pass_on(ADDRESS, b"x" * 40) == b""
    assert it.guard.pass_on("198.19.0.99", b"x" * 40) == b"x" * 40
