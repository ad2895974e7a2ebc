"""Signals as events of a poll loop: each arrives as a byte on a pipe."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["FORWARDED", "SignalPipe"]

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class SignalPipe:
    """While entered, `signals` no longer act by themselves but can be read from `fileno`.

    Args:
        signals: which; those that the caller was started with as ignored (nohup) stay ignored.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let the signals act as before."""
        if not self._before and self._wakeup_before == -1 and self._read < 0:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)
        self._read = self._write = self._wakeup_before = -1

    def fileno(self) -> int:
        """Readable when a signal has arrived."""
        return self._read

    def take(self) -> list[int]:
        """The signals that have arrived."""
        try:
            return list(os.read(self._read, 1024))
        except BlockingIOError:
            return []
