"""Questions at a real terminal; the helper is the other end of a socket."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
from typing import TYPE_CHECKING

import pytest

from vmgr.api.hostcommands import Question, Settled
from vmgr.cli.asking import Asking

if TYPE_CHECKING:
    from collections.abc import Iterator


class Questions:
    """What the helper says and hears."""

    def __init__(self) -> None:
        self.coming: list[Question | Settled] = []
        self.answers: list[tuple[int, bool]] = []
        self.closed = False

    def fileno(self) -> int:
        return -1

    def receive(self) -> list[Question | Settled]:
        coming, self.coming = self.coming, []
        return coming

    def answer(self, question: Question, *, allow: bool) -> None:
        self.answers.append((question.id, allow))

    def close(self) -> None:
        self.closed = True


class Terminal:
    def __init__(self, *, shared: bool) -> None:
        self.master, self.slave = pty.openpty()
        self.helper = Questions()
        self.asking = Asking(self.helper, self.slave, shared=shared)  # type: ignore[arg-type]

    def ask(self, number: int = 1, detail: str = "git push") -> str:
        """Put a question; the letters that allow it."""
        self.helper.coming.append(
            Question(id=number, machine="web", title="May it", detail=detail, seconds=60)
        )
        self.asking.news()
        return self.code()

    def code(self) -> str:
        self.seen = ""
        while (found := re.search(r"Type (\w+) and .*: $", self.seen)) is None:
            assert select.select([self.master], [], [], 30)[0], self.seen
            self.seen += os.read(self.master, 65_536).decode()
        return found[1]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())
        self.asking.read()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal(shared=True)
    yield made
    made.asking.close()
    os.close(made.master)
    os.close(made.slave)


def test_the_letters_allow(terminal: Terminal) -> None:
    terminal.type(terminal.ask() + "\n")
    assert terminal.helper.answers == [(1, True)]
    assert not terminal.asking.active


@pytest.mark.parametrize("typed", ["\n", "y\n", "yes\n", "abcd\n", " \n"])
def test_anything_else_refuses(terminal: Terminal, typed: str) -> None:
    terminal.ask()
    terminal.type(typed)
    assert terminal.helper.answers == [(1, False)]


def test_letters_are_of_one_question(terminal: Terminal) -> None:
    first = terminal.ask(1)
    terminal.type("\n")
    assert terminal.ask(2) != first
    terminal.type(first + "\n")
    assert terminal.helper.answers == [(1, False), (2, False)]


def test_what_was_typed_before_is_gone(terminal: Terminal) -> None:
    os.write(terminal.master, b"typed ahead\n")
    assert select.select([terminal.slave], [], [], 30)[0]
    code = terminal.ask()
    terminal.type(code + "\n")
    assert terminal.helper.answers == [(1, True)]


def test_the_screen_is_ours_and_the_machines_words_do_nothing(terminal: Terminal) -> None:
    terminal.ask(detail="x\x1b[2J\x07\u202e")
    clean, _, rest = terminal.seen.partition("vmgr: May it:")
    assert clean.startswith("\x18\x1b\\")  # ends what a machine may have begun
    assert clean.endswith("\x1b[2J\x1b[H")
    assert "\x1b" not in rest
    assert "\u202e" not in rest


def test_one_at_a_time_and_those_that_are_settled_are_not_asked(terminal: Terminal) -> None:
    terminal.ask(1)
    for number in (2, 3):
        terminal.helper.coming.append(
            Question(id=number, machine="web", title="t", detail="d", seconds=60)
        )
    terminal.helper.coming += [Settled(id=2, why="over"), Settled(id=1, why="over")]
    terminal.asking.news()
    terminal.type(terminal.code() + "\n")
    assert terminal.helper.answers == [(3, True)]


def test_the_terminal_is_as_before(terminal: Terminal) -> None:
    mode = termios.tcgetattr(terminal.slave)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(terminal.slave, termios.TCSANOW, mode)
    before = termios.tcgetattr(terminal.slave)
    terminal.ask()
    assert termios.tcgetattr(terminal.slave)[3] & termios.ECHO
    terminal.asking.refuse()
    assert termios.tcgetattr(terminal.slave) == before
    assert terminal.helper.answers == [(1, False)]


def test_a_helper_that_goes_is_a_refusal(terminal: Terminal) -> None:
    terminal.ask()
    terminal.helper.closed = True
    terminal.asking.news()
    assert not terminal.asking.active
    assert terminal.helper.answers == []
