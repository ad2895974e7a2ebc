"""What people and scripts read: sentences on stderr, tables and JSON on stdout."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from vmgr.errors import VmgrError

__all__ = [
    "age",
    "aligned",
    "bytes_text",
    "fields",
    "note",
    "paint",
    "print_json",
    "printable",
    "problem",
    "table",
]

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_ESCAPED: Final = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
_COLOURS: Final = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}
_AGES: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def problem(error: VmgrError) -> None:
    """Say what went wrong, and what to try."""
    note(f"vmgr: {printable(error.message)}.")
    if error.next_step:
        note(f"Try: {printable(error.next_step)}.")


def note(line: str) -> None:
    """A line for the person, on stderr."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody is there to read it
    except UnicodeEncodeError:
        print(line.encode("ascii", "replace").decode(), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """A model, or a list of models, as JSON on stdout."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    # Outside of strings there are none, and in them they are the same so; terminals obey some.
    print(text.translate(_ESCAPED))


def printable(text: str) -> str:
    """`text` without what could steer a terminal: names and reasons may come from a machine."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns; None is shown as `-`."""
    for line in aligned(headers, rows):
        print(line)


def aligned(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Container[int] = ()
) -> list[str]:
    """The lines of a table; the columns that `right` names are of numbers."""
    lines = [list(headers)]
    lines += [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def cell(text: str, at: int) -> str:
        return text.rjust(widths[at]) if at in right else text.ljust(widths[at])

    return ["  ".join(cell(c, at) for at, c in enumerate(line)).rstrip() for line in lines]


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print `key: value` lines, values aligned; None is left out."""
    shown = [(key, printable(str(value))) for key, value in pairs if value is not None]
    width = max((len(key) for key, _ in shown), default=0) + 1
    for key, value in shown:
        print(f"{key + ':':<{width}} {value}")


def bytes_text(count: int | None) -> str | None:
    """`count` bytes with a fitting unit: `1.5 GiB`."""
    if count is None:
        return None
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:  # noqa: PLR2004 (the units' step)
            digits = 0 if value >= 100 or value == int(value) else 1  # noqa: PLR2004 (3 digits do)
            return f"{value:.{digits}f} {unit}"
        value /= 1024
    return None


def age(seconds: float | None) -> str | None:
    """A span of time in its largest unit: `3 minutes`."""
    if seconds is None:
        return None
    for length, name in _AGES:
        count = int(max(seconds, 0) // length)
        if count:
            return f"{count} {name}{'s' if count > 1 else ''}"
    return "0 seconds"


def paint(text: str, colour: str) -> str:
    """`text` in a colour where stdout is a terminal that wants any (https://no-color.org)."""
    wanted = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not wanted or os.environ.get("TERM", "dumb") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
