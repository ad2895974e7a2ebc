"""A machine's clock, in answers."""

from __future__ import annotations

from typing import Literal

from vmgr.api.base import Model

__all__ = ["ClockInfo"]


class ClockInfo(Model, frozen=True, kw_only=True):
    """A machine's clock, against this computer's."""

    offset_seconds: float
    """The machine's is ahead by so much."""
    uncertainty_seconds: float
    measured_at: float
    synchronized: bool
    """A program of the machine's own keeps it, so vmgr does not."""
    corrected: Literal["slew", "step"] | None = None
    """How it was corrected last, since the helper started."""
    corrected_at: float | None = None
