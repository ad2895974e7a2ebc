from __future__ import annotations

import pytest

from vmgr.agent.flows import CreditError, InFlow, OutFlow
from vmgr.agent.frames import ProtocolViolation


def test_output_up_to_the_limit_and_no_byte_more() -> None:
    flow = InFlow(1000)
    flow.take(65_536)
    with pytest.raises(ProtocolViolation, match="more data than was granted"):
        flow.take(1)


def test_a_grant_opens_the_window() -> None:
    flow = InFlow()
    flow.take(65_536)
    flow.grant(65_536, 65_536 + 262_144)
    flow.take(262_144)
    with pytest.raises(ProtocolViolation):
        flow.take(1)


@pytest.mark.parametrize(
    ("acked", "limit"),
    [
        (99, 70_000),  # less than acknowledged before
        (501, 70_000),  # more than received
        (400, 69_999),  # limit below the one before
        (400, 400 + 262_145),  # window too wide
        (-1, 70_000),
    ],
)
def test_grants_that_break_the_rules(acked: int, limit: int) -> None:
    flow = InFlow()
    flow.take(500)
    flow.grant(100, 70_000)
    with pytest.raises(CreditError):
        flow.grant(acked, limit)
    assert (flow.acked, flow.limit) == (100, 70_000)


def test_an_output_ends_once_and_takes_nothing_after_it() -> None:
    flow = InFlow()
    flow.end()
    with pytest.raises(ProtocolViolation):
        flow.end()
    with pytest.raises(ProtocolViolation):
        flow.take(0)


def test_stdin_up_to_the_limit_and_no_byte_more() -> None:
    flow = OutFlow(7)
    assert flow.room == 65_536
    flow.send(65_536)
    with pytest.raises(CreditError):
        flow.send(1)
    flow.credited(7, 7 + 1_048_576)
    assert flow.room == 1_048_576 - 65_536


@pytest.mark.parametrize(
    ("acked", "limit"),
    [
        (501, 70_000),  # more than sent
        (99, 70_000),  # less than before
        (400, 69_999),  # taken back
        (400, 400 + 1_048_577),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_credit_lies(acked: int, limit: int) -> None:
    flow = OutFlow()
    flow.send(500)
    flow.credited(100, 70_000)
    with pytest.raises(ProtocolViolation):
        flow.credited(acked, limit)
