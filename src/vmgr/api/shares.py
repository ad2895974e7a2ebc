"""Shares: directories of this computer in machines."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Share", "UnwantedShare"]


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of this computer that a machine sees."""

    host: str
    """Its absolute path here."""
    guest: str | None = None
    """Its absolute path in the machine; None: the same."""
    read_only: bool = False
    transport: Literal["fuse"] | None = None
    """How it reaches the machine that runs; what a client says here and below is ignored."""
    reason: str | None = None
    """Why so."""
    problem: str | None = None
    """Why it does not work just now."""


class UnwantedShare(msgspec.Struct, frozen=True, kw_only=True):
    """Which share is to go."""

    guest: str
    """Its path in the machine."""
