"""Putting questions about machines to the person at a terminal that a machine may write to.

A machine must neither answer a question nor make another one of it, so

- nothing of the machine's is written while a question stands (the caller's part), and what it has
  written before is taken off the screen: scroll regions, colours, a sequence left unfinished could
  hide our words or put others beside them;
- what was typed before is thrown away, and an answer is the typing of letters made up for this
  question. A terminal can be made to "type" what a machine wrote to it earlier; these letters it
  cannot know. Nor does a key meant for an editor allow anything;
- the machine's words are escaped by the helper, and once more here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import termios
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from vmgr.api.hostcommands import Question
from vmgr.cli.output import printable
from vmgr.errors import VmgrError

if TYPE_CHECKING:
    from vmgr.client.questions import Questions

__all__ = ["Asking"]

_LETTERS: Final = "abcdefghjkmnpqrstuvwxyz"
_LENGTH: Final = 4
_LINE: Final = 4_096
# End a sequence that was left unfinished; UTF-8, ASCII; no insert mode, no origin, no margins;
# plain colours and the terminal's own palette; a cursor; then an empty screen.
_CLEAN: Final = (
    "\x18\x1b\\\x1b%G\x1b(B\x0f\x1b[4l\x1b[?6l\x1b[?69l\x1b[r\x1b[0m"
    "\x1b]104\x1b\\\x1b]110\x1b\\\x1b]111\x1b\\\x1b[?25h\x1b[2J\x1b[H"
)


class Asking:
    """One terminal, and the questions that are put there, one after the other.

    Args:
        questions: where they come from.
        terminal: an fd of the terminal, to be read and written.
        shared: a machine writes to it too.
    """

    def __init__(self, questions: Questions, terminal: int, *, shared: bool) -> None:
        self._questions = questions
        self._terminal = terminal
        self._shared = shared
        self._waiting: deque[Question] = deque()
        self._current: Question | None = None
        self._code = ""
        self._typed = b""
        self._before: list[Any] | None = None

    @property
    def active(self) -> bool:
        """Whether a question stands: the terminal is ours."""
        return self._current is not None

    @property
    def closed(self) -> bool:
        """Whether no more questions come."""
        return self._questions.closed

    def fileno(self) -> int:
        """Readable when there is news of questions."""
        return self._questions.fileno()

    def news(self) -> None:
        """See what has come, and put the next question."""
        try:
            arrived = self._questions.receive()
        except VmgrError as error:
            self._questions.close()
            self._over(f"no more questions can be asked: {error}")
            return
        for one in arrived:
            if isinstance(one, Question):
                self._waiting.append(one)
                continue
            self._waiting = deque(q for q in self._waiting if q.id != one.id)
            if self._current is not None and self._current.id == one.id:
                self._over(f"settled without you: {one.why}")
        if self.closed and self.active:
            self._over("the helper has gone: refused")
        self._next()

    def read(self) -> None:
        """Read what the person types."""
        try:
            data = os.read(self._terminal, _LINE)
        except OSError:
            data = b""
        if not data:
            self.refuse()
            return
        self._typed = (self._typed + data)[-_LINE:]
        if b"\n" in self._typed or b"\r" in self._typed:
            said = self._typed.replace(b"\r", b"\n").split(b"\n", 1)[0].strip()
            self._answer(allow=secrets.compare_digest(said, self._code.encode()))

    def refuse(self) -> None:
        """Ctrl-C, or the terminal has gone."""
        if self.active:
            self._answer(allow=False)

    def close(self) -> None:
        """Be no more there; what stands is refused by the helper if nobody else answers."""
        self._restore()
        self._current = None
        self._questions.close()

    # -- inside ----------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._current is not None or not self._waiting:
            return
        self._current = question = self._waiting.popleft()
        self._code = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
        self._typed = b""
        self._take()
        how = (
            f"Type {self._code} and Enter to allow this once, Enter alone to refuse; "
            f"after {question.seconds:g} s it is refused: "
        )
        lines = [
            f"vmgr: {printable(question.title)}:",
            "",
            f"    {printable(question.detail)}",
            "",
            how,
        ]
        self._write((_CLEAN if self._shared else "\n") + "\n".join(lines))

    def _answer(self, *, allow: bool) -> None:
        assert self._current is not None  # noqa: S101 (one stands)
        self._questions.answer(self._current, allow=allow)
        self._over("allowed" if allow else "refused")
        self._next()

    def _over(self, what: str) -> None:
        if self._current is not None:
            self._write(f"\nvmgr: {printable(what)}\n")
        self._current = None
        self._restore()

    def _take(self) -> None:
        """Lines are typed and shown; what was typed before is gone."""
        with contextlib.suppress(termios.error):
            if self._before is None:
                self._before = termios.tcgetattr(self._terminal)
            mode = termios.tcgetattr(self._terminal)
            mode[0] |= termios.ICRNL
            mode[1] |= termios.OPOST | termios.ONLCR
            mode[3] |= termios.ICANON | termios.ECHO | termios.ECHOE | termios.ISIG
            termios.tcsetattr(self._terminal, termios.TCSAFLUSH, mode)

    def _restore(self) -> None:
        if self._before is not None:
            before, self._before = self._before, None
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._terminal, termios.TCSAFLUSH, before)

    def _write(self, text: str) -> None:
        data = text.encode()
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._terminal, data) :]
