from __future__ import annotations

import pytest

from vmgr.errors import UsageError
from vmgr.machine.ports import NEVER, PortRule


def test_on_is_all_but_what_a_system_has_for_itself() -> None:
    rule = PortRule.parse("on")
    assert not rule.off
    assert rule.admits("tcp", 80)
    assert rule.admits("udp", 9_000)
    assert not any(rule.admits(*port) for port in NEVER)
    assert not rule.admits("tcp", 22)


def test_off_is_nothing() -> None:
    rule = PortRule.parse("off")
    assert rule.off
    assert not rule.admits("tcp", 80)


def test_a_list_is_what_it_says() -> None:
    rule = PortRule.parse("22, 3000-3999,5353/udp")
    assert rule.text == "22,3000-3999,5353/udp"
    for protocol, port, admitted in (
        ("tcp", 22, True), ("udp", 22, True), ("tcp", 3_000, True), ("tcp", 3_999, True),
        ("tcp", 4_000, False), ("udp", 5_353, True), ("tcp", 5_353, False), ("tcp", 80, False),
    ):  # fmt: skip
        assert rule.admits(protocol, port) is admitted, (protocol, port)


@pytest.mark.parametrize(
    "text", ["", "yes", "80,", "0", "65536", "90-80", "80/sctp", "80;81", ",".join("1" * 65), "-1"]
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ports"):
        PortRule.parse(text)
