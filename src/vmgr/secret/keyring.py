"""The Secret Service of the person's session, asked by a process of its own.

The library waits without a limit (for a prompt, for a service that hangs), and brings cryptography
that the helper does not need otherwise. So each request is a short-lived worker that can be ended:
`python -m vmgr.secret.worker`. What is secret goes through pipes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Final

from vmgr.errors import StateError
from vmgr.secret.names import check_secret_name
from vmgr.secret.worker import DONE, MISSING, NO_SERVICE
from vmgr.spawner import minimal_environment, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmgr.spawner import Completed

__all__ = ["Keyring", "NoKeyringError"]

_DEADLINE: Final = 60.0
"""Seconds; a keyring that is locked asks for its password."""


class NoKeyringError(StateError):
    """There is no Secret Service in this session."""


class Keyring:
    """The keyring that a Secret Service keeps.

    Each call raises NoKeyringError where there is none, and StateError where it does not answer or
    stays locked.

    Args:
        addresses: where the session bus may be now.
    """

    def __init__(self, addresses: Callable[[], list[str]]) -> None:
        self._addresses = addresses

    async def names(self) -> list[str]:
        """Those of vmgr's secrets that are in it."""
        said = await self._ask("ls")
        return sorted((said or b"").decode(errors="replace").split())

    async def get(self, name: str) -> bytes | None:
        """The secret; None: there is none of that name."""
        return await self._ask("get", check_secret_name(name))

    async def set(self, name: str, value: bytes) -> None:
        """Keep a secret, in place of one of that name."""
        await self._ask("set", check_secret_name(name), value)

    async def remove(self, name: str) -> bool:
        """Forget a secret; False: there is none of that name."""
        return await self._ask("rm", check_secret_name(name)) is not None

    async def _ask(self, verb: str, name: str = "", value: bytes | None = None) -> bytes | None:
        for address in await asyncio.to_thread(self._addresses):
            done = await _worker(address, verb, name, value)
            if done.status.code == DONE:
                return done.stdout
            if done.status.code == MISSING:
                return None
            if done.status.code != NO_SERVICE:
                lines = done.stderr.decode(errors="replace").strip().splitlines()
                raise _failed(lines[-1][:200] if lines else "its worker ended early")
        raise NoKeyringError(
            "there is no keyring (Secret Service) in this session",
            next_step="start one, or: vmgr config set secrets.store auto",
        )


async def _worker(address: str, verb: str, name: str, value: bytes | None) -> Completed:
    """Have a worker do one request on the bus at `address`."""
    stdin = None if value is None else os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        if stdin is not None and value is not None:
            os.write(stdin, value)
            os.lseek(stdin, 0, os.SEEK_SET)
        return await run(
            [sys.executable, "-P", "-m", "vmgr.secret.worker", verb, name],
            env={**minimal_environment(), "DBUS_SESSION_BUS_ADDRESS": address},
            stdin=stdin,
            deadline=_DEADLINE,
            check=False,
        )
    except TimeoutError:
        raise _failed(f"it did not answer within {_DEADLINE:g} s") from None
    except OSError as error:
        raise _failed(f"its worker cannot be started: {error.strerror}") from error
    finally:
        if stdin is not None:
            os.close(stdin)


def _failed(why: str) -> StateError:
    return StateError(
        f"the keyring cannot be used: {why}",
        next_step="unlock it in your desktop, or keep secrets in files: "
        "vmgr config set secrets.store file",
    )
