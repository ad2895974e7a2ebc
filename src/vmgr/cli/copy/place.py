"""Files of machines as command lines name them: `NAME:PATH`."""

from __future__ import annotations

from typing import NamedTuple

from vmgr.errors import UsageError

__all__ = ["Place", "in_machine", "place"]


class Place(NamedTuple):
    """A path. `machine` is None on this host."""

    machine: str | None
    path: str

    def __str__(self) -> str:
        return self.path if self.machine is None else f"{self.machine}:{self.path}"


def place(text: str) -> Place:
    """Read a path: `NAME:PATH`, unless a slash before the colon says that it is of this host."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return Place(None, text)
    return Place(name, path or ".")


def in_machine(text: str) -> tuple[str, str]:
    """The machine and the path that `NAME:PATH` names.

    Raises:
        UsageError: it names no machine.
    """
    found = place(text)
    if found.machine is None:
        raise UsageError(
            f"{text} names no file of a machine", next_step="write it as NAME:PATH, like web:/etc"
        )
    return found.machine, found.path
