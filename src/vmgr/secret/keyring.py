"""The Secret Service of the person's session, asked by a process of its own.

The library waits without a limit (for a prompt, for a service that hangs), and brings cryptography
that the helper does not need otherwise. So each request is a short-lived worker that can be ended:
`python -m vmgr.secret.worker`. What is secret goes through pipes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.errors import StateError
from vmgr.secret.names import check_secret_name
from vmgr.secret.worker import DONE, MISSING, NO_SERVICE
from vmgr.spawner import minimal_environment, run

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Keyring", "bus_address"]

_DEADLINE: Final = 60.0
"""Seconds; a keyring that is locked asks for its password."""


def bus_address(environ: Mapping[str, str]) -> str | None:
    """The session bus, also for a helper whose environment does not name it."""
    if (address := environ.get("DBUS_SESSION_BUS_ADDRESS")) is not None:
        return address
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime is not None and (bus := Path(runtime) / "bus").is_socket():
        return f"unix:path={bus}"
    return None


class Keyring:
    """The keyring that a Secret Service keeps.

    Args:
        address: of the session bus; None: there is none.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    async def usable(self) -> bool:
        """Whether there is one."""
        return self._address is not None and await self._ask("probe") is not None

    async def names(self) -> list[str]:
        """Those of vmgr's secrets that are in it; none where there is no keyring.

        Raises:
            StateError: it does not answer, or stays locked; also for the other calls.
        """
        said = await self._ask("ls")
        return sorted((said or b"").decode(errors="replace").split())

    async def get(self, name: str) -> bytes | None:
        """The secret; None: there is none of that name, or no keyring."""
        return await self._ask("get", check_secret_name(name))

    async def set(self, name: str, value: bytes) -> None:
        """Keep a secret, in place of one of that name."""
        if await self._ask("set", check_secret_name(name), value) is None:
            raise StateError("there is no keyring (Secret Service) in this session")

    async def remove(self, name: str) -> bool:
        """Forget a secret; False: there is none of that name, or no keyring."""
        return await self._ask("rm", check_secret_name(name)) is not None

    async def _ask(self, verb: str, name: str = "", value: bytes | None = None) -> bytes | None:
        if self._address is None:
            return None
        stdin = None
        if value is not None:
            stdin = os.memfd_create("secret", os.MFD_CLOEXEC)
        try:
            if stdin is not None and value is not None:
                os.write(stdin, value)
                os.lseek(stdin, 0, os.SEEK_SET)
            done = await run(
                [sys.executable, "-P", "-m", "vmgr.secret.worker", verb, name],
                env={**minimal_environment(), "DBUS_SESSION_BUS_ADDRESS": self._address},
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
        if done.status.code == DONE:
            return done.stdout
        if done.status.code in {NO_SERVICE, MISSING}:
            return None
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _failed(lines[-1][:200] if lines else "its worker ended early")


def _failed(why: str) -> StateError:
    return StateError(
        f"the keyring cannot be used: {why}",
        next_step="unlock it in your desktop, or keep secrets in files: "
        "vmgr config set secrets.store file",
    )
