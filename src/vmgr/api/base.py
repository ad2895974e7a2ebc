"""What all bodies of requests and answers are."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Model"]


class Model(Struct, frozen=True, kw_only=True, omit_defaults=False, forbid_unknown_fields=False):
    """Base of all bodies."""
