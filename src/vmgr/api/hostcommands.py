"""The bodies about commands that machines run on this computer."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

__all__ = [
    "Answer",
    "HostCommands",
    "HostCommandsChange",
    "HostCommandsMode",
    "Question",
    "Settled",
]

HostCommandsMode = Literal["none", "ask", "list", "all"]
Name = Annotated[str, Meta(min_length=1, max_length=255)]


class HostCommands(Struct, frozen=True, kw_only=True):
    """What a machine may run on this computer, as its person."""

    mode: HostCommandsMode = "none"
    """`ask`: what is on the list, and for all else the person is asked each time; `list`: what is
    on the list; `all`: everything."""
    allow: list[Name] = field(default_factory=list)
    """Names of commands, as found on the person's PATH. `:open`, `:notify`, `:copy` and `:paste`
    are what `host open` and its like do."""


class HostCommandsChange(Struct, frozen=True, kw_only=True):
    """What is different from now on; what is not named stays as it is."""

    mode: HostCommandsMode | None = None
    add: list[Name] = field(default_factory=list)
    remove: list[Name] = field(default_factory=list)


class Question(Struct, frozen=True, kw_only=True, tag_field="type", tag="question"):
    """Somebody is to decide. Texts of a machine's are escaped: printable, one line, bounded."""

    id: int
    machine: str
    title: str
    """What is asked, in one sentence."""
    detail: str
    """The command."""
    seconds: float
    """After which it is refused."""


class Answer(Struct, frozen=True, kw_only=True, tag_field="type", tag="answer"):
    """A person's decision."""

    id: int
    allow: bool


class Settled(Struct, frozen=True, kw_only=True, tag_field="type", tag="settled"):
    """A question that needs no answer any more: somebody else has decided, or time is over."""

    id: int
    why: str
