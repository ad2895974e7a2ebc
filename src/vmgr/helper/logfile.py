"""The helper's log: bounded on disk, written by a thread of its own.

Writing goes through a queue, so a slow disk never holds the event loop. The last lines are also
kept in memory for crash reports.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LogFile"]

MAX_BYTES: Final = 2 * 1024 * 1024
RECENT_LINES: Final = 200
QUEUED_RECORDS: Final = 10_000
_FORMAT: Final = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"


class _Recent(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=RECENT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class LogFile:
    """Sends the root logger's records to a rotating file (two files of at most 2 MiB)."""

    def __init__(self, path: Path) -> None:
        formatter = logging.Formatter(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")
        self._file = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8")
        self._recent = _Recent()
        for handler in (self._file, self._recent):
            handler.setFormatter(formatter)
        pending: queue.Queue[logging.LogRecord] = queue.Queue(QUEUED_RECORDS)
        self._listener = QueueListener(pending, self._file, self._recent)
        self._listener.start()
        root = logging.getLogger()
        root.setLevel(logging.INFO)
        root.handlers[:] = [_DroppingQueueHandler(pending)]
        # One line per API call is noise; the handlers log what matters.
        logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
        logging.getLogger("qemu.qmp").setLevel(logging.WARNING)
        logging.captureWarnings(capture=True)

    def recent(self) -> list[str]:
        """The last lines logged."""
        return list(self._recent.lines)

    def close(self) -> None:
        """Write what is queued."""
        self._listener.stop()
        self._file.close()


class _DroppingQueueHandler(QueueHandler):
    """Drops a record rather than block the loop when the disk cannot keep up."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return
