"""A screen that is drawn again in place, and given back as it was found whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import termios
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from vmgr.cli.signals import SignalPipe
from vmgr.cli.terminal import terminal_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    Woken = Literal["time", "quit", "size"]

__all__ = ["LiveScreen"]

# xterm's control sequences, which every terminal of today knows: the alternate screen, so that what
# the person had on theirs comes back; the cursor.
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME, _TO_LINE_END, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
_QUIT_KEYS: Final = frozenset(b"qQ")
_NEVER: Final = b"\0"  # _POSIX_VDISABLE on Linux: no key does this


class LiveScreen:
    """Has the terminal on stdout, and the keys of the one on stdin if it is one.

    Ctrl-C raises KeyboardInterrupt as it does elsewhere, SIGTERM is a wish to quit.
    """

    def __init__(self) -> None:
        self._signals = SignalPipe(signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
        self._keys = sys.stdin.isatty()
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        self._signals.__enter__()
        atexit.register(self._restore)
        if self._keys:
            self._saved = termios.tcgetattr(0)
            mode = termios.tcgetattr(0)
            mode[3] &= ~(termios.ECHO | termios.ICANON)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            # Stopped, it would leave its screen and a terminal without echo behind.
            mode[6][termios.VSUSP] = _NEVER
            termios.tcsetattr(0, termios.TCSADRAIN, mode)
        self._write(_ENTER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        self._signals.release()

    def draw(self, lines: Sequence[str]) -> None:
        """Show `lines`, as many and as much of each as there is room for."""
        size = terminal_size(1)
        shown = [line[: size.cols] + _TO_LINE_END for line in lines[: size.rows]]
        self._write(_HOME + "\n".join(shown) + _TO_END)

    def wait(self, seconds: float) -> Woken:
        """Wait; say what ended it: the time, a wish to quit, another size of the terminal."""
        until = time.monotonic() + seconds
        while True:
            watched = [self._signals.fileno(), *([0] if self._keys else [])]
            ready, _, _ = select.select(watched, [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return "time"
            if 0 in ready:
                keys = os.read(0, 64)
                if not keys or _QUIT_KEYS & set(keys):
                    return "quit"
            if self._signals.fileno() in ready:
                arrived = set(os.read(self._signals.fileno(), 64))
                if arrived & {signal.SIGTERM, signal.SIGHUP}:
                    return "quit"
                if signal.SIGWINCH in arrived:
                    return "size"

    def _restore(self) -> None:
        atexit.unregister(self._restore)
        with contextlib.suppress(OSError):  # the terminal has gone
            self._write(_LEAVE)
        if self._saved is not None:
            saved, self._saved = self._saved, None
            with contextlib.suppress(termios.error):  # likewise
                termios.tcsetattr(0, termios.TCSADRAIN, saved)

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            sys.stdout.write(text.encode("ascii", "replace").decode())
        sys.stdout.flush()
