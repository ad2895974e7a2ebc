"""Talking to the helper: `Client` (blocking) and `AsyncClient` (asyncio), with the same methods.

Both are thin: `core` is HTTP and WebSocket without I/O, `jobstream` the streams of a command
without I/O, `launch` finds or starts the helper. The names here are imported when first used,
because the command line pays for every import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmgr.client.aio import AsyncClient
    from vmgr.client.aiojob import AsyncJob
    from vmgr.client.job import Completed, Job
    from vmgr.client.sync import Client

__all__ = ["AsyncClient", "AsyncJob", "Client", "Completed", "Job"]

_HOMES = {
    "AsyncClient": "vmgr.client.aio",
    "AsyncJob": "vmgr.client.aiojob",
    "Client": "vmgr.client.sync",
    "Completed": "vmgr.client.job",
    "Job": "vmgr.client.job",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
