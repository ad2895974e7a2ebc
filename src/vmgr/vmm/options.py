"""QEMU's option syntax: `-key name=value,name=value`.

In it a comma ends a value and a doubled comma is a comma (qemu(1), "Notational conventions" of
option arguments). Nothing else is special, so a path with blanks, quotes, `=` or any other letter
is taken as it is, since no shell is between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    Value = str | int | bool | Path

__all__ = ["option", "plain_value"]


def plain_value(value: str) -> str:
    """See that a value can be an argument at all and would be printed as one line.

    Raises:
        UsageError: it has a NUL, which ends an argument, or a line break, which would forge log
            lines.
    """
    if any(c in value for c in "\0\n\r"):
        raise UsageError(
            f"{value!r} has a line break or NUL in it, which QEMU cannot be given",
            next_step="choose another path or name",
        )
    return value


def option(head: str = "", /, **values: Value | None) -> str:
    """Write one option's argument.

    Args:
        head: what comes first without a name: a device's driver, a machine's type.
        values: by name, where `_` stands for `-` and `__` for `.`; None leaves the name out.
    """
    parts = [_escape(head)] if head else []
    for name, value in values.items():
        if value is None:
            continue
        text = ("off", "on")[value] if isinstance(value, bool) else str(value)
        parts.append(f"{name.replace('__', '.').replace('_', '-')}={_escape(text)}")
    return ",".join(parts)


def _escape(value: str) -> str:
    return plain_value(value).replace(",", ",,")
