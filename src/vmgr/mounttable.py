"""This process's mounts, as the kernel lists them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mounted", "mounted"]

_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


class Mounted(NamedTuple):
    """One line of /proc/PID/mountinfo, see proc_pid_mountinfo(5)."""

    device: tuple[int, int]
    """Major and minor number of its files' `st_dev`."""
    root: str
    """What of the file system is mounted."""
    directory: str
    options: frozenset[str]
    """Of this mount: `ro`, `nosuid` and the like."""
    kind: str
    """The type of the file system."""
    source: str
    super_options: frozenset[str]
    """Of the file system, whatever mount."""


def mounted(table: bytes | None = None) -> Iterator[Mounted]:
    """All mounts, in the order in which they were mounted.

    Args:
        table: None: this process's.

    Raises:
        OSError: there is no /proc.
    """
    if table is None:
        table = Path("/proc/self/mountinfo").read_bytes()
    for line in table.splitlines():
        before, _, after = line.partition(b" - ")
        _, _, device, root, directory, options, *_ = before.split(b" ")
        kind, source, super_options = after.split(b" ", 2)
        major, _, minor = device.partition(b":")
        yield Mounted(
            (int(major), int(minor)), _plain(root), _plain(directory), _words(options),
            _plain(kind), _plain(source), _words(super_options),
        )  # fmt: skip


def _words(field: bytes) -> frozenset[str]:
    return frozenset(_plain(field).split(","))


def _plain(field: bytes) -> str:
    """A field in which blanks and the like are written in octal."""
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), field))
