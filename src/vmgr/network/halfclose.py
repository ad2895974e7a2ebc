"""Whether a way out carries half-closed connections rightly. Tried, not believed.

Who sends a request and then says that there is no more (rsync, git, many a shell pipeline) still
waits for the answer. With pasta of 2023 that "no more" gets lost when it comes early, and answers
come with parts twice; which release does it on which kernel is not written anywhere. So the program
is started as it would be, in namespaces of its own, and does it a few times with a server here.

Run as a program, this is the client in those namespaces: `HOST PORT SECRET`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Final

from vmgr.errors import UnsupportedError
from vmgr.network import confined
from vmgr.network.strays import MARK
from vmgr.network.trial import HOST, end, on_trial
from vmgr.spawner import minimal_environment, spawn

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.network.egress_programs import EgressProgram
    from vmgr.sandbox import Sandbox

__all__ = ["keeps_half_closes"]

_STARTED: Final = 10.0  # seconds
_PATIENCE: Final = 5.0  # for one answer; what works takes a millisecond
_SENT: Final = (0, 1, 70_000, 0, 1, 400_000, 0, 0, 1, 1)
"""Bytes before the end, of one connection after another."""
_ANSWER: Final = 300_000
_SECRET: Final = 16
_LOST: Final = 3  # how the client ends


async def keeps_half_closes(program: EgressProgram, sandbox: Sandbox, runtime: Path) -> bool:
    """Try it.

    Args:
        sandbox: the one that it would run in.
        runtime: marks what is started as ours, should we die meanwhile.

    Raises:
        UnsupportedError, OSError, TimeoutError: it could not be tried.
    """
    secret = secrets.token_bytes(_SECRET)
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.start_server(
            lambda reader, writer: _serve(reader, writer, secret), "127.0.0.1", 0
        )
        stack.callback(server.close)
        namespaces = await stack.enter_async_context(on_trial(program, sandbox, runtime))
        client = await spawn(
            [
                *namespaces.entering("user", "net"), sys.executable, "-P", "-m", __name__,
                HOST, str(server.sockets[0].getsockname()[1]), secret.hex(),
            ],
            env={**minimal_environment(), **confined.python_environment(), MARK: str(runtime)},
            parent_death="kill",
        )  # fmt: skip
        stack.push_async_callback(end, client)
        async with asyncio.timeout(_STARTED + _PATIENCE * len(_SENT)):
            ended = await client.wait()
        if ended.code not in {0, _LOST}:
            raise UnsupportedError(f"its trial ended with {ended}")
        return ended.code == 0


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> None:
    """Answer once there is no more to come."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(_PATIENCE):
            if await reader.readexactly(_SECRET) == secret:
                count = 0
                while more := await reader.read(65_536):
                    count += len(more)
                writer.write(count.to_bytes(4, "big") + bytes(_ANSWER))
                await writer.drain()
    writer.close()


def _ask(place: tuple[str, int], secret: bytes, sent: int) -> bool:
    """Whether an answer comes, and is the answer to this."""
    with socket.create_connection(place, _PATIENCE) as sock:
        sock.sendall(secret + bytes(sent))
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while more := sock.recv(65_536):
            answer += more
            if len(answer) > _ANSWER + 4:
                return False
    return answer == sent.to_bytes(4, "big") + bytes(_ANSWER)


def _main() -> int:
    place, secret = (sys.argv[1], int(sys.argv[2])), bytes.fromhex(sys.argv[3])
    try:
        return 0 if all(_ask(place, secret, sent) for sent in _SENT) else _LOST
    except OSError:  # time is up, or it was reset
        return _LOST


if __name__ == "__main__":
    sys.exit(_main())
