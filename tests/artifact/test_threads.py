from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmgr.artifact.threads import in_thread


async def test_result_and_error_come_through() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert await in_thread(pool, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await in_thread(pool, divmod, 7, 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_comes_only_after_the_thread_has_ended(fails: bool) -> None:  # noqa: FBT001 (pytest names it)
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait()
        ended.set()
        if fails:
            raise OSError

    with ThreadPoolExecutor(2) as pool:
        task = asyncio.create_task(in_thread(pool, work))
        await asyncio.get_running_loop().run_in_executor(pool, begun.wait)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
