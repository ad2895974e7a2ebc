"""The switchboard's beginning: sockets of the host first, then into the namespaces."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import socket
from typing import Final

__all__ = ["main"]

_FILES: Final = 65_536


def main() -> None:
    """Run the switchboard; the process ends with it."""
    parser = argparse.ArgumentParser(prog="vmgr-switchboard")
    parser.add_argument("--holder", type=int, required=True, help="who keeps the namespaces")
    parser.add_argument("--listen-fd", type=int, required=True, help="where helpers connect")
    parser.add_argument("--ready-fd", type=int, required=True, help="told `ready` or what failed")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        status = asyncio.run(_run(options.holder, options.listen_fd, options.ready_fd))
    except Exception as error:
        logging.getLogger(__name__).critical("cannot go on", exc_info=error)
        _tell(options.ready_fd, f"error: {error}")
        status = 1
    raise SystemExit(status)


async def _run(holder: int, listen_fd: int, ready_fd: int) -> int:
    from vmgr.switchboard.namespace import enter, prepare
    from vmgr.switchboard.resolver import UpstreamSockets

    upstream = UpstreamSockets()
    enter(holder)
    refused = prepare()
    # After entering: netlink sockets belong to the namespace in which they are made.
    from vmgr.switchboard.server import Switchboard

    listener = socket.socket(fileno=listen_fd)
    switchboard = Switchboard(listener, upstream)
    for name in refused:
        logging.getLogger(__name__).info("this kernel does not let %s be set", name)
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
