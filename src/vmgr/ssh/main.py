"""The SSH server's main module: lock, keys, listening, signals.

The lock is held while it runs: who finds it free starts one (`vmgr.ssh.files`, "wake"). The record
says who holds it and on which port. SIGTERM ends it; SIGHUP has it listen no more, give up the lock
and end with its last connection, which is how one of another version is replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import logging.handlers
import os
import queue
import signal
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr._version import __version__
from vmgr.api.models import SshServer
from vmgr.client.aio import AsyncClient
from vmgr.errors import VmgrError
from vmgr.paths import Paths
from vmgr.spawner.process import start_time_of

if TYPE_CHECKING:
    import asyncssh

__all__ = ["main"]

_LOG_MAX: Final = 1 << 20

log = logging.getLogger("vmgr.ssh")


def main() -> None:
    """Run the SSH server; the process ends with it."""
    parser = argparse.ArgumentParser(prog="vmgr-ssh", description="vmgr's SSH server.")
    parser.add_argument("--ready-fd", type=int, required=True, help="where to say how it went")
    parser.add_argument("--port", type=int, default=0, help="0: the one it had, or any")
    options = parser.parse_args()
    paths = Paths.from_environment()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.ExitStack() as stack:
        try:
            lock = os.open(paths.ssh_lock, flags, 0o600)
            # One that was told to make room gives it up at once; whoever started us has a deadline.
            fcntl.flock(lock, fcntl.LOCK_EX)
            stack.callback(_log_to(paths).stop)
            asyncio.run(_serve(paths, options.port, options.ready_fd, lock))
        except (OSError, VmgrError) as error:
            why = error.message if isinstance(error, VmgrError) else error.strerror or str(error)
            log.error("cannot start: %s", error)  # noqa: TRY400 (the sentence says it all)
            with contextlib.suppress(OSError):
                os.write(options.ready_fd, f"error: {why}\n".encode())
            sys.exit(1)


def _log_to(paths: Paths) -> logging.handlers.QueueListener:
    """Log to a file of bounded size, which a thread of its own writes."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    file = logging.handlers.RotatingFileHandler(paths.ssh_log, maxBytes=_LOG_MAX, backupCount=1)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(logging.handlers.QueueHandler(lines))
    root.setLevel(logging.INFO)
    # Of each connection it says more than anybody reads.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    listener = logging.handlers.QueueListener(lines, file)
    listener.start()
    return listener


async def _serve(paths: Paths, wanted: int, ready_fd: int, lock: int) -> None:
    from vmgr.ssh import files
    from vmgr.ssh.server import Door

    loop = asyncio.get_running_loop()
    stop, drain = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, drain.set)
    keys = files.load_keys(paths)
    async with AsyncClient(paths) as client:
        door = Door(client, keys)
        acceptor = await _listen(door, wanted or _last_port(paths), fixed=wanted != 0)
        port = acceptor.get_port()
        files.write_client_files(paths, keys)
        files.write_port(paths, port)
        record = SshServer(
            pid=os.getpid(),
            start_time=start_time_of(os.getpid()) or 0,
            version=__version__,
            port=port,
            config=str(paths.ssh_config),
        )
        temporary = paths.ssh_record.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(paths.ssh_record)
        log.info("ssh server %d listens on 127.0.0.1 port %d", os.getpid(), port)
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
        await _first(stop, drain)
        acceptor.close()
        # From now on the next client starts another server, while this one takes its leave.
        with contextlib.suppress(FileNotFoundError):
            paths.ssh_record.unlink()
        os.close(lock)
        if not stop.is_set():
            log.info("ssh server %d makes room for another", os.getpid())
            await _first(stop, door.empty)
        for server in {*door.known, *door.unknown}:
            server.connection.abort()
        log.info("ssh server %d ends", os.getpid())


async def _first(*events: asyncio.Event) -> None:
    """Wait for the first of them."""
    waits = {asyncio.create_task(event.wait(), name="end of the ssh server") for event in events}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _listen(door: object, port: int, *, fixed: bool) -> asyncssh.SSHAcceptor:
    """Listen on `port`; on any other where that is taken and nobody asked for it."""
    from vmgr.ssh.server import Door, listen

    assert isinstance(door, Door)  # noqa: S101 (see above)
    try:
        return await listen(door, port)
    except OSError:
        if fixed or not port:
            raise
        return await listen(door, 0)


def _last_port(paths: Paths) -> int:
    """The port of the server before us, so that clients that know it find us there."""
    with contextlib.suppress(OSError, ValueError):
        words = paths.ssh_port_config.read_text().split()
        port = int(words[words.index("Port") + 1])
        return port if 0 < port < 1 << 16 else 0
    return 0
