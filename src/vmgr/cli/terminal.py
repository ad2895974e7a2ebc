"""The person's terminal: raw while a command in a machine has it, and restored whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import os
import termios
from typing import TYPE_CHECKING, Any, Final

from vmgr.api.models import TerminalSize

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["RawTerminal", "environment_for_terminal", "terminal_size"]

_DEFAULT: Final = TerminalSize(rows=24, cols=80)
_PASSED_ON: Final = ("TERM", "COLORTERM", "LANG", "LC_ALL", "LC_CTYPE")


def terminal_size(*fds: int) -> TerminalSize:
    """The size of the first of `fds` that is a terminal and knows its size; else 24 x 80."""
    for fd in fds:
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        if found.lines and found.columns:
            return TerminalSize(rows=found.lines, cols=found.columns)
    return _DEFAULT


def environment_for_terminal() -> dict[str, str]:
    """The variables that programs on a terminal go by."""
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env.setdefault("TERM", "xterm")
    return env


class RawTerminal:
    """Keys go to the machine as they are, from `enter` to `leave`.

    Args:
        fd: the terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Make it raw, as cfmakeraw(3) does."""
        if self._saved is None:
            self._saved = termios.tcgetattr(self._fd)
            atexit.register(self.leave)
        mode = termios.tcgetattr(self._fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)

    def leave(self) -> None:
        """Put it back as it was found."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            atexit.unregister(self.leave)
            with contextlib.suppress(termios.error):  # the terminal has gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)
