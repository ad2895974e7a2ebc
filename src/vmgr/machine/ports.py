"""Which ports of a machine appear on this computer by themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vmgr.errors import UsageError

__all__ = ["NEVER", "PortRule"]

_ITEM: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp))?")
_MOST: Final = 64
_LAST: Final = 65_535

NEVER: Final = frozenset(
    {("tcp", port) for port in (22, 25, 53, 111)}
    | {("udp", port) for port in (53, 67, 68, 111, 123, 137, 138, 323, 546, 547, 5353, 5355)}
)
"""What a system listens on for itself (ssh, mail, names, DHCP, clocks): not unless it is named."""


@dataclass(frozen=True)
class PortRule:
    """`on`, `off`, or a list such as `8080,3000-3999,5353/udp`."""

    text: str
    everything: bool = False
    ranges: tuple[tuple[str, int, int], ...] = ()
    """Protocol (empty: both), first and last port."""

    @classmethod
    def parse(cls, text: str) -> PortRule:
        """Read it.

        Raises:
            UsageError: it is none.
        """
        words = text.replace(" ", "")
        if words in {"on", "off"}:
            return cls(words, everything=words == "on")
        ranges = []
        for item in words.split(","):
            match = _ITEM.fullmatch(item)
            first = int(match[1]) if match else 0
            last = int(match[2] or first) if match else 0
            if match is None or not 0 < first <= last <= _LAST:
                raise UsageError(
                    f"{text[:60]!r} is neither on, off nor a list of ports",
                    next_step="write a list like 8080,3000-3999,5353/udp",
                )
            ranges.append((match[3] or "", first, last))
        if len(ranges) > _MOST:
            raise UsageError(f"a list of ports has at most {_MOST} parts")
        return cls(words, ranges=tuple(ranges))

    @property
    def off(self) -> bool:
        """Whether no port appears."""
        return not self.everything and not self.ranges

    def admits(self, protocol: str, port: int) -> bool:
        """Whether that port appears when somebody listens on it."""
        if self.everything:
            return (protocol, port) not in NEVER
        return any(
            kind in {"", protocol} and first <= port <= last for kind, first, last in self.ranges
        )
