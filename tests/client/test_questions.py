"""Both clients that answer questions, against a scripted helper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vmgr.api import streams as s
from vmgr.api.hostcommands import Question, Settled
from vmgr.api.models import ErrorBody
from vmgr.client.aio import AsyncClient
from vmgr.client.sync import Client
from vmgr.errors import NotFoundError

from .peer import Peer

if TYPE_CHECKING:
    from vmgr.client.questions import Questions
    from vmgr.paths import Paths

    from .peer import Connection

ASKED = Question(id=7, machine="web", title="May it", detail="git push", seconds=60)
OVER = Settled(id=8, why="time is over")


def _all(questions: Questions) -> list[Question | Settled]:
    news = []
    while not questions.closed:
        news += questions.receive()
    return news


class Script:
    """A helper that asks, hears one answer, and goes."""

    def __init__(self) -> None:
        self.target = ""
        self.heard: Any = None

    def __call__(self, connection: Connection) -> None:
        self.target = connection.target
        connection.accept()
        connection.send(ASKED)
        connection.send(OVER)
        self.heard = connection.receive()
        connection.close()


def test_a_question_is_answered(paths: Paths) -> None:
    script = Script()
    with Peer(paths.helper_socket, script):
        questions = Client(paths, launch=False).authorize("web")
        news: list[Question | Settled] = []
        while len(news) < 2:
            news += questions.receive()
        assert news == [ASKED, OVER]
        questions.answer(ASKED, allow=True)
        while not questions.closed:
            assert questions.receive() == []
        questions.close()
    assert script.target == "/v1/authorize?machine=web"
    assert script.heard == {"type": "answer", "id": 7, "allow": True}


async def test_so_it_is_by_the_other_client(paths: Paths) -> None:
    script = Script()
    with Peer(paths.helper_socket, script):
        questions = await AsyncClient(paths, launch=False).authorize()
        news: list[Question | Settled] = []
        while len(news) < 2:
            news += await questions.receive()
        assert news == [ASKED, OVER]
        await questions.answer(ASKED, allow=False)
        while not questions.closed:
            assert await questions.receive() == []
        questions.close()
    assert script.target == "/v1/authorize"
    assert script.heard == {"type": "answer", "id": 7, "allow": False}


def test_a_refusal_is_raised(paths: Paths) -> None:
    def script(connection: Connection) -> None:
        connection.accept()
        error = ErrorBody(code="not-found", message="there is no machine web")
        connection.send(s.Failed(error=error))
        connection.close()

    with Peer(paths.helper_socket, script):
        questions = Client(paths, launch=False).authorize("web")
        with pytest.raises(NotFoundError, match="there is no machine web"):
            _all(questions)
        questions.close()
