"""Named threads for work that blocks; the event loop's thread never does it.

- `store`: one thread, so that SQLite sees one user and writes are ordered.
- `files`: copying, hashing, deleting: two threads, so that a long job leaves one for short ones.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Executors"]

P = ParamSpec("P")
R = TypeVar("R")


class Executors:
    """The helper's executors, made once and closed at the end."""

    def __init__(self) -> None:
        self.store = ThreadPoolExecutor(1, thread_name_prefix="vmgr-store")
        self.files = ThreadPoolExecutor(2, thread_name_prefix="vmgr-files")

    async def in_store(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `call` in the store's thread; a cancelled caller does not stop a write under way."""
        return await asyncio.get_running_loop().run_in_executor(
            self.store, lambda: call(*args, **kwargs)
        )

    async def in_files(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `call` in a thread for file work."""
        return await asyncio.get_running_loop().run_in_executor(
            self.files, lambda: call(*args, **kwargs)
        )

    def close(self) -> None:
        """Finish what was handed in, then end the threads."""
        self.store.shutdown()
        self.files.shutdown()
