"""A burst is borne, and so is what comes slowly; a flood is not."""

from __future__ import annotations

import pytest

from vmgr.agent.frames import ProtocolViolation
from vmgr.agent.patience import Patience


def test_what_comes_slowly_may_come_for_ever() -> None:
    now = [0.0]
    patience = Patience("events", 10, 2, lambda: now[0])
    for _ in range(10):
        patience.spend()
    for _ in range(1_000):
        now[0] += 0.5
        patience.spend()
    with pytest.raises(ProtocolViolation, match="a flood of events"):
        patience.spend()


def test_after_a_pause_there_is_a_burst_and_no_more() -> None:
    now = [0.0]
    patience = Patience("events", 10, 2, lambda: now[0])
    for _ in range(10):
        patience.spend()
    now[0] = 1_000_000.0
    for _ in range(10):
        patience.spend()
    with pytest.raises(ProtocolViolation):
        patience.spend()
