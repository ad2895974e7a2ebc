"""Whether something may be done, as the person says now.

They are asked by the desktop's own way where there is one (`agent`: polkit), else at their
terminals: all of them at once, and the first answer counts. Where nobody can be asked, and where
nobody answers in time, the answer is no.

A machine can make us ask, so questions are bounded: those that wait, of one machine and of all, and
those of one machine in the long run. What is beyond that is refused without asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from vmgr.api.hostcommands import Question, Settled
from vmgr.authorization.listener import Listener
from vmgr.authorization.policy import HOST_COMMAND, OPENING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Agent", "Authorization"]

WAITING_OF_ONE: Final = 4
WAITING_OF_ALL: Final = 16
_BURST: Final = 8.0
_PAUSE: Final = 5.0  # seconds for each further question of one machine's
SECONDS: Final = 60.0
# `vmgr exec -t NAME host COMMAND` asks before its terminal has come to be asked.
_ARRIVAL: Final = 1.0

log = logging.getLogger(__name__)


class Agent(Protocol):
    """The desktop's own way of asking."""

    async def ask(self, question: Question, action: str) -> bool | None:
        """The person's answer; None: it cannot be had this way.

        Args:
            action: what kind of thing is asked, see `vmgr.authorization.policy`.
        """


class _Machine:
    """What one machine may still ask."""

    def __init__(self, now: float) -> None:
        self.waiting = 0
        self.left = _BURST
        self.counted = now

    def take(self, now: float) -> bool:
        self.left = min(_BURST, self.left + (now - self.counted) / _PAUSE)
        self.counted = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Authorization:
    """All questions.

    Args:
        agent: the desktop's way of asking; None: terminals alone.
        seconds: how long an answer is waited for.
        arrival: how long somebody is waited for who could answer.
        clock: what time it is, in seconds.
    """

    def __init__(
        self,
        agent: Agent | None = None,
        *,
        seconds: float = SECONDS,
        arrival: float = _ARRIVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._seconds = seconds
        self._arrival = arrival
        self._arrived = asyncio.Event()
        self._standing: dict[int, Question] = {}
        self._clock = clock
        self._machines: dict[str, _Machine] = {}
        self._listeners: list[Listener] = []
        self._open: dict[int, asyncio.Future[bool]] = {}
        self._number = 0

    async def ask(self, machine: str, title: str, detail: str) -> str | None:
        """Ask; None: it may be done. Else why not, in a sentence for the machine.

        Args:
            machine: whose doing it is.
            title: what is asked; ours.
            detail: the machine's words, escaped: printable and in one line.
        """
        now = self._clock()
        self._forget(now)
        asking = self._machines.setdefault(machine, _Machine(now))
        if asking.waiting >= WAITING_OF_ONE or len(self._open) >= WAITING_OF_ALL:
            return "too many questions wait for an answer of the host's person"
        if not asking.take(now):
            return "this machine has asked too often; wait a while"
        self._number += 1
        question = Question(
            id=self._number, machine=machine, title=title, detail=detail, seconds=self._seconds
        )
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open[question.id] = answer
        asking.waiting += 1
        try:
            return await self._put(question, answer)
        finally:
            asking.waiting -= 1
            del self._open[question.id]

    async def ask_desktop(self, machine: str, detail: str) -> bool | None:
        """The desktop's answer to what the person themselves wants; None: it has none.

        Args:
            machine: about which; empty: about one that is not there yet.
            detail: what is asked.
        """
        if self._agent is None:
            return None
        self._number += 1
        question = Question(
            id=self._number, machine=machine, title="", detail=detail, seconds=self._seconds
        )
        try:
            async with asyncio.timeout(self._seconds):
                return await self._agent.ask(question, OPENING)
        except TimeoutError:
            return False

    def answer(self, number: int, *, allow: bool) -> None:
        """A terminal's answer; one that comes too late means nothing."""
        waiting = self._open.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(allow)

    @contextlib.contextmanager
    def listening(self, machine: str | None = None) -> Iterator[Listener]:
        """A terminal at which questions can be put, of one machine or of all."""
        listener = Listener(machine)
        self._listeners.append(listener)
        self._arrived.set()
        for question in self._standing.values():
            if listener.takes(question.machine):
                listener.tell(question)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

    # -- machinery -------------------------------------------------------------------------------

    async def _put(self, question: Question, answer: asyncio.Future[bool]) -> str | None:
        why = "it was answered"
        try:
            async with asyncio.timeout(self._seconds):
                if self._agent is not None:
                    said = await self._agent.ask(question, HOST_COMMAND)
                    if said is not None:
                        return None if said else "the host's person did not allow it"
                self._standing[question.id] = question
                for listener in self._takers(question.machine):
                    listener.tell(question)
                if not await self._somebody(question.machine):
                    return (
                        "the host's person is asked about this, and nobody is there to ask: on "
                        "the host, keep this open in a terminal: vmgr authorize"
                    )
                return None if await answer else "the host's person did not allow it"
        except TimeoutError:
            why = "nobody answered in time"
            return f"the host's person did not answer within {self._seconds:g} s"
        except asyncio.CancelledError:
            why = "the machine does not wait for it any more"
            raise
        finally:
            if self._standing.pop(question.id, None) is not None:
                for listener in self._takers(question.machine):
                    listener.tell(Settled(id=question.id, why=why))

    def _takers(self, machine: str) -> list[Listener]:
        return [one for one in self._listeners if one.takes(machine)]

    async def _somebody(self, machine: str) -> bool:
        """Whether somebody is there to ask, or comes at once: with the command that asks."""
        try:
            async with asyncio.timeout(self._arrival):
                while not self._takers(machine):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def _forget(self, now: float) -> None:
        """Machines that have asked nothing for long have all of their questions left."""
        long_ago = now - _BURST * _PAUSE
        for name, asking in list(self._machines.items()):
            if not asking.waiting and asking.counted < long_ago:
                del self._machines[name]
