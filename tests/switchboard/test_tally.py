from __future__ import annotations

import asyncio
from typing import Any

from vmgr.switchboard.tally import Tally


class Heard:
    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.more = asyncio.Event()

    def __call__(self, machine: str, data: dict[str, Any]) -> None:
        self.told.append((machine, data))
        self.more.set()


async def test_the_first_is_told_at_once_and_the_rest_as_a_number() -> None:
    heard = Heard()
    tally = Tally(heard, interval=0.01)
    for _ in range(1_000):
        tally.add("m", {"address": "192.0.2.1", "protocol": "tcp", "port": 80})
    assert heard.told == [("m", {"address": "192.0.2.1", "protocol": "tcp", "port": 80})]
    heard.more.clear()
    async with asyncio.timeout(30):
        await heard.more.wait()
    assert heard.told[1][1]["count"] == 999
    tally.close()


async def test_kinds_are_bounded() -> None:
    heard = Heard()
    tally = Tally(heard, interval=60)
    for port in range(1, 10_000):
        tally.add("m", {"address": "192.0.2.1", "protocol": "tcp", "port": port})
    assert len(heard.told) == 65
    assert heard.told[-1] == ("m", {"protocol": "others"})
    tally.add("other", {"address": "192.0.2.1", "protocol": "tcp", "port": 1})
    assert heard.told[-1][0] == "other", "each machine has its own"
    tally.forget("m")
    tally.close()


async def test_what_is_over_is_forgotten() -> None:
    heard = Heard()
    tally = Tally(heard, interval=0.01)
    once, again = ({"name": name, "protocol": "dns"} for name in ("a.example", "b.example"))
    tally.add("m", once)
    tally.add("m", again)
    tally.add("m", again)
    heard.more.clear()
    async with asyncio.timeout(30):
        await heard.more.wait()  # both have been looked at
    tally.add("m", once)
    assert heard.told[-2:] == [("m", {**again, "count": 1}), ("m", once)]
    tally.close()
