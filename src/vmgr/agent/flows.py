"""Credit of one flow, on either end of it.

Offsets are absolute: bytes of the flow since the job began. Invariants, on both ends:
`acked <= sent <= limit`, `limit - acked <= window`, and none of them ever falls.
"""

from __future__ import annotations

from typing import Final

from vmgr.agent.frames import ProtocolViolation
from vmgr.errors import UsageError

__all__ = ["INITIAL_CREDIT", "OUTPUT_WINDOW", "STDIN_WINDOW", "CreditError", "InFlow", "OutFlow"]

INITIAL_CREDIT: Final = 65_536
OUTPUT_WINDOW: Final = 262_144
STDIN_WINDOW: Final = 1_048_576


class CreditError(UsageError):
    """Our own side (in the end: a client) sent or granted what the rules do not allow."""


class InFlow:
    """Output of a job: the agent sends, our consumer grants."""

    __slots__ = ("acked", "ended", "limit", "received")

    def __init__(self, start: int = 0) -> None:
        self.received = self.acked = start
        self.limit = start + INITIAL_CREDIT
        self.ended = False

    def take(self, count: int) -> None:
        """The agent sent `count` bytes; `ProtocolViolation` when it had no leave to."""
        if self.ended:
            raise ProtocolViolation("data after the end of its flow")
        if count > self.limit - self.received:
            raise ProtocolViolation("more data than was granted")
        self.received += count

    def end(self) -> None:
        """The agent ended the flow."""
        if self.ended:
            raise ProtocolViolation("a flow that ended twice")
        self.ended = True

    def grant(self, acked: int, limit: int) -> None:
        """Our consumer has taken all before `acked` and leaves room up to `limit`.

        Raises:
            CreditError: beyond the window or what was received, or less than before.
        """
        if not self.acked <= acked <= self.received:
            raise CreditError(f"acknowledged {acked} bytes of {self.received} received")
        if not max(self.limit, acked) <= limit <= acked + OUTPUT_WINDOW:
            raise CreditError(f"granted up to {limit} with {acked} acknowledged")
        self.acked, self.limit = acked, limit


class OutFlow:
    """A job's stdin: we send, the agent grants."""

    __slots__ = ("acked", "ended", "limit", "sent")

    def __init__(self, start: int = 0) -> None:
        self.sent = self.acked = start
        self.limit = start + INITIAL_CREDIT
        self.ended = False

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return 0 if self.ended else self.limit - self.sent

    def send(self, count: int) -> None:
        """Count what is about to be sent; `CreditError` beyond the limit or after the end."""
        if self.ended:
            raise CreditError("data after the end of stdin")
        if count > self.limit - self.sent:
            raise CreditError(f"{count} bytes of stdin with leave for {self.limit - self.sent}")
        self.sent += count

    def credited(self, acked: int, limit: int) -> None:
        """The agent's CREDIT; `ProtocolViolation` when it breaks an invariant."""
        if not self.acked <= acked <= self.sent:
            raise ProtocolViolation(
                "an acknowledgement of bytes that were not sent, or fewer than before"
            )
        if not max(self.limit, acked) <= limit <= acked + STDIN_WINDOW:
            raise ProtocolViolation("credit below what was given before, or beyond the window")
        self.acked, self.limit = acked, limit
