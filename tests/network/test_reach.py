from __future__ import annotations

import pytest

from vmgr.errors import UsageError
from vmgr.network.reach import Reach, canonical, parse_rule
from vmgr.switchboard.messages import Rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("example.org", Rule(domain="example.org")),
        ("Example.ORG.", Rule(domain="example.org")),
        ("*.example.org:443", Rule(domain="*.example.org", protocol="tcp", port=443)),
        ("ntp.example.org:123/udp", Rule(domain="ntp.example.org", protocol="udp", port=123)),
        ("münchen.example", Rule(domain="xn--mnchen-3ya.example")),
        ("192.0.2.7", Rule(network="192.0.2.7/32")),
        ("192.0.2.7/24:53/udp", Rule(network="192.0.2.0/24", protocol="udp", port=53)),
        ("10.0.0.0/8", Rule(network="10.0.0.0/8")),
        ("[2001:db8::7]:443", Rule(network="2001:db8::7/128", protocol="tcp", port=443)),
        ("2001:db8::/32", Rule(network="2001:db8::/32")),
        ("::1", Rule(network="::1/128")),
        ("[2001:db8::/32]:53/udp", Rule(network="2001:db8::/32", protocol="udp", port=53)),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(canonical([text])[0]) == rule


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "a..b", "a.*.b", "10.0.0.300", "10.0.0.0/33", "a:0", "a:65536", "a/udp",
     "a:1:2", "a b", "a\n:80", ":443", "[::1", "[a]:1", "[192.0.2.1]:1", "-a.example",
     "a:80/sctp", 'a"', "x" * 64 + ".example", "a." * 127 + "example", "http://example.org"],
)  # fmt: skip
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_rule(text)
    assert "is not a rule of an allow-list" in str(error.value)


def test_a_list_is_written_one_way_and_bounded() -> None:
    assert canonical(["A.example:80/tcp", "a.example:80", "192.0.2.1/32"]) == [
        "a.example:80",
        "192.0.2.1",
    ]
    with pytest.raises(UsageError):
        canonical([f"a{n}.example" for n in range(257)])


def test_what_only_the_switchboard_enforces() -> None:
    assert not Reach("internet").needs_switchboard
    assert Reach("internet", ()).needs_switchboard
    assert Reach("full", None, (80,)).needs_switchboard
    assert Reach("full").rules is None
    assert Reach("full", ()).rules == []
