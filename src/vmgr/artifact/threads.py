"""Blocking work in an executor, such that a cancelled build has really stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

__all__ = ["in_thread"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(executor: Executor, work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Do `work` in a thread of `executor` and give its result.

    A thread cannot be cancelled. If the caller is, this waits for the thread all the same before
    it passes the cancellation on: otherwise the work would go on writing into a directory that is
    being removed.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, work, *args)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()  # seen, so that nobody complains about it
        raise cancelled
    return future.result()
