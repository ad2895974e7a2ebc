"""The switchboard's beginning: it is started in its namespaces and its sandbox."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import socket
from typing import TYPE_CHECKING, Final

from vmgr.switchboard.seccomp import restrict

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main", "quick_loop"]

_FILES: Final = 65_536


def main() -> None:
    """Run the switchboard; the process ends with it."""
    parser = argparse.ArgumentParser(prog="vmgr-switchboard")
    parser.add_argument("--upstream-fds", required=True, help="sockets of the host's network")
    parser.add_argument("--listen-fd", type=int, required=True, help="where helpers connect")
    parser.add_argument("--ready-fd", type=int, required=True, help="told `ready` or what failed")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        # Before there is a loop: the quick one would begin to use what is denied (io_uring).
        if (refused := restrict()) is not None:
            logging.getLogger(__name__).warning("no filter of system calls: %s", refused)
        with asyncio.Runner(loop_factory=quick_loop()) as runner:
            status = runner.run(
                _run(_fds(options.upstream_fds), options.listen_fd, options.ready_fd)
            )
    except Exception as error:
        logging.getLogger(__name__).critical("cannot go on", exc_info=error)
        _tell(options.ready_fd, f"error: {error}")
        status = 1
    raise SystemExit(status)


def quick_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop that a connection costs least with; None: asyncio's own, where there is no other."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _fds(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


async def _run(upstream_fds: list[int], listen_fd: int, ready_fd: int) -> int:
    from vmgr.switchboard.server import Switchboard
    from vmgr.switchboard.upstream import UpstreamSockets

    upstream = UpstreamSockets(upstream_fds)
    listener = socket.socket(fileno=listen_fd)
    switchboard = Switchboard(listener, upstream)
    serving = asyncio.get_running_loop().create_task(switchboard.run(), name="switchboard")
    started = asyncio.get_running_loop().create_task(switchboard.started.wait(), name="started")
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        _tell(ready_fd, "ready")
    started.cancel()
    await serving
    return 0


def _tell(fd: int, line: str) -> None:
    try:
        os.write(fd, line.encode()[:500].replace(b"\n", b" ") + b"\n")
        os.close(fd)
    except OSError:
        return  # told already, or nobody is there
