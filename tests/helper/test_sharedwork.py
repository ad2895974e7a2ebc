from __future__ import annotations

import asyncio

import pytest

from vmgr.helper.sharedwork import SharedWork


def ignore(_message: str, _fraction: float | None) -> None:
    pass


async def test_two_waiters_share_one_piece_of_work_and_its_progress() -> None:
    shared = SharedWork()
    go = asyncio.Event()
    runs = 0

    async def work(tell: object) -> int:
        nonlocal runs
        runs += 1
        tell("half", 0.5)  # type: ignore[operator]
        await go.wait()
        return runs

    heard: list[tuple[str, float | None]] = []
    first = asyncio.create_task(shared.do("k", work, ignore))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(shared.do("k", work, lambda m, f: heard.append((m, f))))
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(first, second) == [1, 1]
    assert heard == [("half", 0.5)]


async def test_it_is_cancelled_and_cleaned_up_when_the_last_waiter_goes() -> None:
    shared = SharedWork()
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def work(_tell: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    first = asyncio.create_task(shared.do("k", work, ignore))
    second = asyncio.create_task(shared.do("k", work, ignore))
    await started.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not cleaned.is_set()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert cleaned.is_set()


async def test_a_failure_reaches_all_and_the_next_begins_afresh() -> None:
    shared = SharedWork()
    attempts = 0

    async def work(_tell: object) -> str:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        if attempts == 1:
            raise ValueError("broken")
        return "fine"

    results = await asyncio.gather(
        shared.do("k", work, ignore), shared.do("k", work, ignore), return_exceptions=True
    )
    assert [str(r) for r in results] == ["broken", "broken"]
    assert await shared.do("k", work, ignore) == "fine"
