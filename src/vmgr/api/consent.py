"""What the person has to agree to before it is done, in requests and answers."""

from __future__ import annotations

from msgspec import field

from vmgr.api.base import Model
from vmgr.api.models import PortForward  # noqa: TC001 (msgspec resolves annotations at run time)
from vmgr.api.shares import Share  # noqa: TC001 (likewise)

__all__ = ["Consent", "Opening"]


class Opening(Model, frozen=True, kw_only=True):
    """What is about to be opened of this computer."""

    machine: str | None = None
    """None: a new one that has no name yet."""
    shares: list[Share] = field(default_factory=list)
    ports: list[PortForward] = field(default_factory=list)


class Consent(Model, frozen=True, kw_only=True):
    """Whether it may be."""

    agreed: bool
    """Nothing of it needs to be asked about, or the desktop has asked."""
    questions: list[str] = field(default_factory=list)
    """What is to be asked where the command was typed; without a question mark."""
