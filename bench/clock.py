"""Timing, medians, and rows of the result."""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Row:
    """One thing that was measured."""

    name: str
    unit: str
    samples: list[float] = field(default_factory=list)
    goal: str = ""
    """As the project states it, or empty."""
    met: bool | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median}


class Stopwatch:
    seconds: float = 0.0

    @property
    def milliseconds(self) -> float:
        return self.seconds * 1000


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    watch = Stopwatch()
    began = time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - began


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Each pair was measured back to back, so the computer's mood cancels out."""
    return [a / b for a, b in zip(over, under, strict=True)]


def table(rows: list[Row]) -> str:
    lines = [("what", "median", "from", "to", "n", "goal", "")]
    for row in rows:
        digits = 0 if row.unit == "ms" and (row.median or 0) >= 100 else 2
        if row.median is None:
            numbers = ("-", "-", "-", "0")
        else:
            numbers = (
                f"{row.median:.{digits}f} {row.unit}",
                f"{min(row.samples):.{digits}f}",
                f"{max(row.samples):.{digits}f}",
                str(len(row.samples)),
            )
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        lines.append((row.name, *numbers, row.goal, " ".join(filter(None, (verdict, row.note)))))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, [*widths, 0], strict=True))
        ).rstrip()
        for line in lines
    )
