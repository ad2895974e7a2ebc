"""Sizes in bytes as people write them.

`K`, `M`, `G`, `T` are powers of 1024, as in qemu-img and most tools that deal with memory and
disks; `KB` and `KiB` mean the same as `K`. Fractions are allowed where they come out as whole
bytes.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from vmgr.errors import UsageError

__all__ = ["format_size", "parse_size"]

_UNITS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NAMES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_NEXT_UNIT: Final = 1023.95
_SIZE: Final = re.compile(
    r"(\d{1,20}(?:\.\d{1,6})?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE | re.ASCII
)
_SIZE_MAX: Final = 2**63 - 1  # off_t, see lseek(2)


def parse_size(text: str) -> int:
    """Bytes that `text` means: `2G`, `512M`, `64GiB`, `1.5g`, `1048576`.

    Raises:
        UsageError: it is no size, not a whole number of bytes, or more than a file can hold.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text[:40]!r} is not a size", next_step="write it like 512M, 2G or 64GiB"
        )
    size = Fraction(match[1]) * 1024 ** _UNITS[match[2].upper()]
    if size.denominator != 1:
        raise UsageError(
            f"{text[:40]!r} is not a whole number of bytes", next_step="use a smaller unit"
        )
    if size > _SIZE_MAX:
        raise UsageError(f"{text[:40]!r} is too large a size", next_step="ask for less")
    return int(size)


def format_size(size: int) -> str:
    """The size for people, at most one decimal: `2 GiB`, `1.5 MiB`, `512 B`."""
    exponent = 0
    # Beyond this it would be printed as 1024 of a unit.
    while exponent < len(_NAMES) - 1 and abs(size) / 1024**exponent >= _NEXT_UNIT:
        exponent += 1
    return f"{size / 1024**exponent:.1f}".removesuffix(".0") + f" {_NAMES[exponent]}"
