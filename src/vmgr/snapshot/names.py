"""What snapshots are called: MACHINE:TAG."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from vmgr.errors import UsageError
from vmgr.machine.names import check_name

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["check_tag", "made_up_tag", "split_reference"]

_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_tag(tag: str) -> str:
    """See that `tag` can be a snapshot's.

    Raises:
        UsageError: it cannot.
    """
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"{tag[:80]!r} is not a tag for a snapshot",
            next_step="use letters, digits and . _ -, at most 63, a letter or digit first",
        )
    return tag


def made_up_tag(taken: Container[str], now: float) -> str:
    """A tag that tells when: the local time, like 20261125-001530."""
    base = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    tag, number = base, 1
    while tag in taken:
        number += 1
        tag = f"{base}-{number}"
    return tag


def split_reference(reference: str) -> tuple[str, str]:
    """Machine and tag of `MACHINE:TAG`.

    Raises:
        UsageError: it is not written so.
    """
    machine, colon, tag = reference.partition(":")
    if not colon:
        raise UsageError(
            f"{reference[:80]!r} does not name a snapshot",
            next_step="write it like web:before; see those there are with: vmgr snapshot ls",
        )
    check_name(machine)
    return machine, check_tag(tag)
