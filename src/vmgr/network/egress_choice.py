"""Which program leads to the internet: what the person wants, what is installed, what works.

pasta is taken only once it has been seen to carry half-closed connections rightly
(`vmgr.network.halfclose`). The answer is kept for this build of the program and this kernel.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.errors import UnsupportedError, VmgrError
from vmgr.network import confined
from vmgr.network.egress_programs import find_program
from vmgr.network.halfclose import keeps_half_closes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vmgr.network.egress_programs import EgressProgram
    from vmgr.sandbox import Answers


__all__ = ["Choice", "EgressChoice", "only_slirp4netns"]

_FORMAT: Final = 1  # of the answers that are kept

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The programs to start, the first that starts; and why one that was wanted is not there."""

    programs: list[EgressProgram]
    note: str | None = None


class EgressChoice:
    """Chooses.

    Args:
        wanted: what the person has configured: `auto`, `slirp4netns` or `pasta`.
        required: whether a process without a sandbox of namespaces will not do.
        answers: where the trial's answer is kept.
        runtime: marks what a trial starts as ours.
    """

    def __init__(
        self,
        wanted: Callable[[], Awaitable[str]],
        required: Callable[[], Awaitable[bool]],
        answers: Answers,
        runtime: Path,
    ) -> None:
        self._wanted = wanted
        self._required = required
        self._answers = answers
        self._runtime = runtime

    async def choose(self) -> Choice:
        """What to start.

        Raises:
            UnsupportedError: there is nothing.
        """
        wanted = await self._wanted()
        slirp = await find_program("slirp4netns")
        # It is the quicker one in bulk (`bench/egress.py`).
        if wanted == "slirp4netns" or (wanted == "auto" and slirp is not None):
            return await only_slirp4netns()
        pasta = await find_program("pasta")
        note = "pasta is not installed" if pasta is None else await self._objection(pasta)
        if note is None and pasta is not None:
            return Choice([pasta] if slirp is None else [pasta, slirp])
        if slirp is not None:
            log.warning("slirp4netns leads to the internet: %s", note)
            return Choice([slirp], note)
        raise _missing("slirp4netns is not installed" if pasta is None else str(note))

    async def _objection(self, pasta: EgressProgram) -> str | None:
        """What speaks against it; None: nothing."""
        try:
            key = await asyncio.to_thread(_key, pasta)
            known = await asyncio.to_thread(self._answers.get, key)
            if known is None:
                sandbox = confined.sandboxes(required=await self._required())[0]
                kept = await keeps_half_closes(pasta, sandbox, self._runtime)
                known = {"keeps_half_closes": kept}
                await asyncio.to_thread(self._answers.put, key, known)
        except (VmgrError, OSError, TimeoutError, IndexError) as error:
            return f"pasta could not be tried ({error or 'it took too long'})"
        if known.get("keeps_half_closes") is True:
            return None
        return f"{pasta.path} does not carry half-closed connections rightly"


async def only_slirp4netns() -> Choice:
    """The choice where nobody configured anything.

    Raises:
        UnsupportedError: it is not installed.
    """
    if (program := await find_program("slirp4netns")) is None:
        raise _missing("slirp4netns is not installed")
    return Choice([program])


def _missing(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{why}, so machines have no internet",
        next_step="run `apt-get install slirp4netns` as root",
    )


def _key(program: EgressProgram) -> str:
    resolved = program.path.resolve()
    found = resolved.stat()
    build = f"{resolved}:{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
    return f"half-close:{_FORMAT}:{build}:{os.uname().release}"
