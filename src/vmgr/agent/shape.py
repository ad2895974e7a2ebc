"""The bounds of a msgpack value, checked before anything is built from it."""

from __future__ import annotations

from typing import Final

from vmgr.agent.frames import MAX_PAYLOAD, ProtocolViolation

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "check_shape"]

MAX_DEPTH: Final = 8
MAX_ITEMS: Final = 16_384
"""Values in one message: 256 job records of 64 each. More could only be meant to cost time."""


def _table() -> tuple[tuple[int, int, int, int] | None, ...]:
    """What follows each first byte, from the msgpack specification's table of formats.

    As `(width, skip, factor, children)`: a big-endian number of `width` bytes; `skip` bytes; and
    `children` values, or where `factor` is set as many as factor times that number; where it is
    not, that number counts bytes.
    """
    table: list[tuple[int, int, int, int] | None] = [None] * 256
    for first in (*range(0x80), *range(0xE0, 0x100)):  # small integers
        table[first] = (0, 0, 0, 0)
    for count in range(16):
        table[0x80 + count] = (0, 0, 0, 2 * count)  # map
        table[0x90 + count] = (0, 0, 0, count)  # array
    for length in range(32):
        table[0xA0 + length] = (0, length, 0, 0)  # str
    for first in (0xC0, 0xC2, 0xC3):  # nil, false, true
        table[first] = (0, 0, 0, 0)
    for power in range(4):
        width = 1 << power
        table[0xCC + power] = table[0xD0 + power] = (0, width, 0, 0)  # integers
        if power < 3:  # noqa: PLR2004 (lengths have 1, 2 or 4 bytes)
            table[0xC4 + power] = table[0xD9 + power] = (width, 0, 0, 0)  # bin, str
            table[0xC7 + power] = (width, 1, 0, 0)  # ext: one more byte says its type
    table[0xCA], table[0xCB] = (0, 4, 0, 0), (0, 8, 0, 0)  # floats
    for power in range(5):
        table[0xD4 + power] = (0, 1 + (1 << power), 0, 0)  # ext of a fixed length
    for power in range(2):
        table[0xDC + power] = (2 << power, 0, 1, 0)  # array
        table[0xDE + power] = (2 << power, 0, 2, 0)  # map
    return tuple(table)


_TABLE: Final = _table()


def check_shape(payload: bytes) -> None:
    """Check size, nesting and number of values.

    Raises:
        ProtocolViolation: beyond `MAX_PAYLOAD`, `MAX_DEPTH` or `MAX_ITEMS`, or no msgpack.
    """
    size = len(payload)
    if size > MAX_PAYLOAD:
        raise ProtocolViolation(f"a message of {size} bytes")
    at = items = 0
    levels = [1]  # values still to come on each level
    while levels:
        if not levels[-1]:
            levels.pop()
            continue
        levels[-1] -= 1
        items += 1
        if items > MAX_ITEMS:
            raise ProtocolViolation(f"a message of more than {MAX_ITEMS} values")
        form = _TABLE[payload[at]] if at < size else None
        if form is None:
            raise ProtocolViolation("a message that is cut short or no msgpack")
        width, skip, factor, children = form
        at += 1
        if width:
            number = int.from_bytes(payload[at : at + width], "big")
            at += width
            if factor:
                children = factor * number
            else:
                at += number
        at += skip
        if children:
            levels.append(children)
            if len(levels) - 1 > MAX_DEPTH:
                raise ProtocolViolation(f"a message nested more than {MAX_DEPTH} deep")
