"""Letting tarfile read a stream of unknown origin."""

from __future__ import annotations

import io
from typing import Final, Protocol

from vmgr.errors import UsageError

__all__ = ["ForwardReader", "Readable"]

_CHUNK: Final = 1 << 20


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


class ForwardReader(io.RawIOBase):
    """A seekable view of a stream, for tarfile: forward by reading, back by a little.

    tarfile steps back one byte to see that a member was not cut off. A header that points further
    back is an attack (a loop), and one read that wants very much is a header that lies.
    """

    _HISTORY: Final = 65_536
    _MAX_READ: Final = 16 << 20

    def __init__(self, stream: Readable, label: str) -> None:
        self._stream = stream
        self._label = label
        self._position = 0
        self._end = 0
        self._history = b""

    def tell(self) -> int:
        """The offset of the next byte read."""
        return self._position

    def seekable(self) -> bool:
        """Yes, within limits."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        """Go to an offset: any ahead, or one not far back. `UsageError` for others."""
        if whence != 0:
            raise UsageError(f"{self._label} is damaged")
        if position < self._end - len(self._history):
            raise UsageError(f"{self._label} is damaged: a header points backwards")
        while self._end < position:
            if not self._pull(min(_CHUNK, position - self._end)):
                break
        self._position = min(position, self._end)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, unless the stream ends. `UsageError` for a senseless size."""
        if size < 0 or size > self._MAX_READ:
            raise UsageError(f"{self._label} is damaged: a header is far too large")
        parts = []
        if self._position < self._end:
            begin = len(self._history) - (self._end - self._position)
            part = self._history[begin : begin + size]
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        while size > 0:
            part = self._pull(min(_CHUNK, size))
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self._position = self._end
        return b"".join(parts)

    def _pull(self, size: int) -> bytes:
        part = self._stream.read(size)
        self._end += len(part)
        self._history = (self._history + part)[-self._HISTORY :]
        return part
