from __future__ import annotations

import asyncio

import pytest

from vmgr.api.hostcommands import Question, Settled
from vmgr.authorization import Authorization, Listener
from vmgr.authorization.authorization import WAITING_OF_ALL, WAITING_OF_ONE
from vmgr.authorization.policy import HOST_COMMAND, OPENING


async def question_of(listener: Listener) -> Question:
    news = await listener.next()
    assert isinstance(news, Question)
    return news


async def turns() -> None:
    """Let every task come as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_terminal_is_asked_and_its_answer_counts() -> None:
    authorization = Authorization()
    for allow in (True, False):
        with authorization.listening() as listener:
            asking = asyncio.create_task(authorization.ask("web", "may it", "x"))
            question = await question_of(listener)
            assert (question.machine, question.title, question.detail) == ("web", "may it", "x")
            authorization.answer(question.id, allow=allow)
            assert ((await asking) is None) is allow


async def test_nobody_is_there() -> None:
    assert "vmgr authorize" in (await Authorization(arrival=0).ask("web", "t", "d") or "")


async def test_a_terminal_takes_questions_of_its_machine_alone() -> None:
    authorization = Authorization(arrival=0)
    with authorization.listening("db"):
        assert await authorization.ask("web", "t", "d") is not None


async def test_the_first_answer_counts_and_the_others_are_told() -> None:
    authorization = Authorization()
    with authorization.listening() as one, authorization.listening("web") as two:
        asking = asyncio.create_task(authorization.ask("web", "t", "d"))
        first, second = await question_of(one), await question_of(two)
        assert first.id == second.id
        authorization.answer(first.id, allow=True)
        authorization.answer(first.id, allow=False)
        assert await asking is None
        assert isinstance(await two.next(), Settled)


async def test_who_comes_a_moment_later_is_asked() -> None:
    authorization = Authorization()
    asking = asyncio.create_task(authorization.ask("web", "t", "d"))
    await turns()
    with authorization.listening("web") as one:
        question = await question_of(one)
        with authorization.listening() as two:
            assert await question_of(two) == question
        authorization.answer(question.id, allow=True)
        assert await asking is None


async def test_time_is_over() -> None:
    authorization = Authorization(seconds=0.01)
    with authorization.listening() as listener:
        refusal = await authorization.ask("web", "t", "d")
        assert "did not answer" in (refusal or "")
        question = await question_of(listener)
        assert isinstance(await listener.next(), Settled)
        authorization.answer(question.id, allow=True)  # too late


async def test_who_asked_has_gone() -> None:
    authorization = Authorization()
    with authorization.listening() as listener:
        asking = asyncio.create_task(authorization.ask("web", "t", "d"))
        await question_of(listener)
        asking.cancel()
        assert isinstance(await listener.next(), Settled)


async def test_a_thousand_questions_at_once_are_few() -> None:
    now = [0.0]
    authorization = Authorization(clock=lambda: now[0], arrival=0)
    with authorization.listening() as listener:
        asking = [asyncio.create_task(authorization.ask("web", "t", str(n))) for n in range(1_000)]
        await turns()
        assert sum(task.done() for task in asking) == 1_000 - WAITING_OF_ONE
        for _ in range(WAITING_OF_ONE):
            authorization.answer((await question_of(listener)).id, allow=False)
        assert None not in await asyncio.gather(*asking)
    # In the long run it may ask now and then.
    said = [await authorization.ask("web", "t", "d") or "" for _ in range(20)]
    assert "too often" in said[-1]
    now[0] += 1_000
    assert "nobody is there" in (await authorization.ask("web", "t", "d") or "")


async def test_all_machines_together_are_bounded() -> None:
    authorization = Authorization()
    with authorization.listening():
        asking = [
            asyncio.create_task(authorization.ask(f"m{n}", "t", "d")) for n in range(WAITING_OF_ALL)
        ]
        await turns()
        assert "too many questions" in (await authorization.ask("one-more", "t", "d") or "")
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


class Agent:
    def __init__(self, *, said: bool | None) -> None:
        self.said = said

    async def ask(self, question: Question, action: str) -> bool | None:
        assert (question.machine, action) in {("web", HOST_COMMAND), ("", OPENING)}
        return self.said


@pytest.mark.parametrize("said", [True, False, None])
async def test_the_desktop_answers_for_what_the_person_wants(*, said: bool | None) -> None:
    assert await Authorization(Agent(said=said)).ask_desktop("", "may it") is said
    assert await Authorization().ask_desktop("", "may it") is None


async def test_the_desktops_way_comes_first() -> None:
    assert await Authorization(Agent(said=True)).ask("web", "t", "d") is None
    assert "did not allow" in (await Authorization(Agent(said=False)).ask("web", "t", "d") or "")
    assert "nobody is there" in (
        await Authorization(Agent(said=None), arrival=0).ask("web", "t", "d") or ""
    )
