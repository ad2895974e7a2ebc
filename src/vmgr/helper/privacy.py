"""Machines in which a command has secrets are not copied: copies are kept, moved and given away."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmgr.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from vmgr.agent import JobRecord
    from vmgr.helper.machine import Machine

__all__ = ["any_private", "nothing_private"]


def any_private(jobs: Iterable[JobRecord]) -> bool:
    """Whether one of these runs and was given secrets."""
    return any(job.private and job.exit is None for job in jobs)


@contextlib.asynccontextmanager
async def nothing_private(machine: Machine, what: str) -> AsyncIterator[None]:
    """While a machine is copied: see that no command with secrets runs, or starts meanwhile.

    Raises:
        ConflictError: one does.
    """
    if machine.status == "stopped":
        yield
        return
    given = machine.secrets_given
    if machine.status == "suspended":
        private = machine.row.private
    else:
        private = any_private(await (await machine.ready_channel()).jobs())
    refusal = ConflictError(
        f"{what} of machine {machine.name} would hold the secrets that a command in it was given",
        next_step=f"see which with: vmgr jobs {machine.name}; and wait until it has ended",
    )
    if private:
        raise refusal
    yield
    if given != machine.secrets_given:
        raise refusal
