from __future__ import annotations

import asyncio

from vmgr.helper.events import BACKLOG, EventBus


async def test_a_follower_goes_on_where_it_was() -> None:
    bus = EventBus()
    first = bus.publish("machine.status", "web", after="running")
    second = bus.publish("machine.status", "web", after="stopped")
    bus.close()
    assert [e async for e in bus.follow(first.seq)] == [second]
    assert second.seq == first.seq + 1
    assert [e async for e in bus.follow(None)] == []


async def test_a_follower_that_does_not_read_is_dropped() -> None:
    bus = EventBus()
    follower = bus.follow()
    reading = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    for number in range(BACKLOG + 50):
        bus.publish("tick", number=number)
    seen = [await reading, *[e async for e in follower]]
    assert len(seen) <= BACKLOG + 1
    assert [e.data["number"] for e in seen] == list(range(len(seen)))
