from __future__ import annotations

import json

from vmgr.switchboard.allowlist import Pin, pinned, recovered


def listed(name: str, *elements: object) -> dict[str, object]:
    return {"set": {"family": "inet", "name": name, "table": "vmgr", "elem": list(elements)}}


def element(value: object, **more: object) -> dict[str, object]:
    return {"elem": {"val": value, "timeout": 90, "expires": 60, "comment": "a.example", **more}}


def test_pins_are_read_back() -> None:
    text = json.dumps({
        "nftables": [
            {"metainfo": {}},
            listed("any4_vm1", element("203.0.113.1"), "203.0.113.2"),
            listed("ports6_vm12", element({"concat": ["2001:db8::1", "udp", 53]})),
            # Where there is no /etc/protocols.
            listed("ports4_vm12", element({"concat": ["203.0.113.3", 6, 443]})),
            listed("any4_vm1", element("203.0.113.4", expires=0)),
            listed("host4", element("203.0.113.5")),
            {"set": {"name": "any6_vm1", "table": "vmgr"}},
        ]
    })  # fmt: skip
    assert recovered(text) == [
        ("vm1", Pin("203.0.113.1", None, None), "a.example", 60),
        ("vm12", Pin("2001:db8::1", "udp", 53), "a.example", 60),
        ("vm12", Pin("203.0.113.3", "tcp", 443), "a.example", 60),
    ]
    assert recovered("") == []


def test_a_name_that_is_none_is_no_comment() -> None:
    hostile = 'x" }; flush ruleset; add element inet t s { 1 comment "'
    for name in (hostile, "a\\032b.example", "x" * 121):
        commands = pinned("vm1", [(Pin("203.0.113.1", None, None), name, 5)])
        assert "comment" not in commands
        assert "flush" not in commands
