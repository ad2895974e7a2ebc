"""How much memory is promised to machines, so that starts at the same time cannot each be told yes.

A machine takes its memory as it touches it. What the host has available when one starts says
nothing of what the others, which start as well or idle, will take later: that is what this counts.
Only the loop's thread is here, and between looking and promising it does nothing else.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from vmgr.errors import ResourceError
from vmgr.machine.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmgr.helper.machine import Machine

__all__ = ["Commitment", "host_memory"]


def host_memory() -> int:
    """Bytes that this computer has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Commitment:
    """What is promised.

    Args:
        machines: all there are; those that are not stopped have their memory.
    """

    def __init__(self, machines: Callable[[], Iterable[Machine]]) -> None:
        self._machines = machines
        self._starting: set[str] = set()

    @contextlib.contextmanager
    def promised(self, starting: Sequence[Machine], percent: int) -> Iterator[None]:
        """Promise machines their memory while they start; then they have it until they stop.

        Args:
            starting: all of them, or none.
            percent: how much of the host's memory may be promised in all.

        Raises:
            ResourceError: there is not so much left, with the figures.
        """
        ids = {machine.row.id for machine in starting}
        others = [
            other
            for other in self._machines()
            if other.row.id not in ids
            and (other.row.id in self._starting or not other.stopped.is_set())
        ]
        promised = sum(other.row.memory_bytes for other in others)
        limit = host_memory() * percent // 100
        wanted = sum(machine.row.memory_bytes for machine in starting)
        if promised + wanted > limit:
            first = starting[0].name
            who = f"machine {first} needs"
            if len(starting) > 1:
                who = f"machine {first} and {len(starting) - 1} more need"
            raise ResourceError(
                f"{who} {format_size(wanted)} of memory, but of the "
                f"{format_size(limit)} that machines may have together, "
                f"{format_size(promised)} are promised to {len(others)} others",
                next_step="stop other machines, ask for less, or allow more with: "
                "vmgr config set memory.overcommit PERCENT",
                details={
                    "machine": first, "needed": wanted, "promised": promised, "limit": limit,
                },
            )  # fmt: skip
        self._starting |= ids
        try:
            yield
        finally:
            self._starting -= ids
