from __future__ import annotations

from vmgr.hostcommands.bounds import Allowance


def test_a_burst_then_a_trickle() -> None:
    now = [0.0]
    allowance = Allowance(3, 2, clock=lambda: now[0])
    assert [allowance.take() for _ in range(5)] == [True, True, True, False, False]
    now[0] = 1.0
    assert [allowance.take() for _ in range(3)] == [True, True, False]
    now[0] = 1_000.0
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
