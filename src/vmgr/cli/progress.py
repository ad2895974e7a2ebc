"""What takes long, told on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from vmgr.cli.output import note, printable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from vmgr.api.streams import Progress

__all__ = ["ProgressLine"]

_QUIET_SECONDS: Final = 1.0  # what is done sooner need not be told
_REDRAW_SECONDS: Final = 0.1
_PLAIN_SECONDS: Final = 30.0


class ProgressLine:
    """Shows the latest progress; as a context manager it leaves a clean line behind.

    Args:
        quiet: show nothing.
        delay: seconds for which nothing is shown, since most work is done by then.
    """

    def __init__(self, *, quiet: bool = False, delay: float = _QUIET_SECONDS) -> None:
        self._live = sys.stderr.isatty()
        self._quiet = quiet
        self._from = time.monotonic() + delay
        self._drawn_at = 0.0
        self._drawn = False
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def show(self, progress: Progress) -> None:
        """Tell how far it is."""
        self.text(progress.message, progress.fraction)

    def text(self, message: str, fraction: float | None = None) -> None:
        """Tell what is being done, and what part (0 to 1) of it has been."""
        now = time.monotonic()
        if self._quiet or now < self._from:
            return
        percent = "" if fraction is None else f" {fraction * 100:3.0f} %"
        line = f"{printable(message)}{percent}"
        if self._live:
            if now - self._drawn_at >= _REDRAW_SECONDS or message != self._last:
                self._draw(line)
                self._drawn_at = now
        elif message != self._last or now - self._drawn_at >= _PLAIN_SECONDS:
            note(line)
            self._drawn_at = now
        self._last = message

    def clear(self) -> None:
        """Take the live line away, before something else is written."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _draw(self, line: str) -> None:
        try:
            columns = os.get_terminal_size(2).columns
        except OSError:
            columns = 80
        self._write(f"\r{line[: max(columns - 1, 1)]}\x1b[K")
        self._drawn = True

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, UnicodeEncodeError):
            pass  # nobody is there to see it, or it cannot be shown
