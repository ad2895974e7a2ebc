"""Running commands as the person would: their environment and umask, none of our fds."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from vmgr.spawner import spawn
from vmgr.userenv.capture import DEADLINE, UserEnvironment, capture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmgr.spawner import Process

__all__ = ["Person"]

log = logging.getLogger(__name__)


class Person:
    """The person whose helper this is. The shell is asked once, when it is first needed.

    Args:
        shell: another than that of the person's account.
        deadline: seconds that the shell gets.
    """

    def __init__(self, shell: str | None = None, deadline: float = DEADLINE) -> None:
        self._shell = shell
        self._deadline = deadline
        self._known: UserEnvironment | None = None
        self._asking = asyncio.Lock()

    async def environment(self, *, refresh: bool = False) -> UserEnvironment:
        """What their commands start with.

        Args:
            refresh: ask the shell again. Where it does not tell, what was known stays.
        """
        before = self._known
        async with self._asking:  # several that ask at once start one shell
            if self._known is None or (refresh and self._known is before):
                told = await capture(self._shell, deadline=self._deadline)
                if told.problem is not None:
                    log.warning("the person's environment is not known: %s", told.problem)
                if self._known is None or told.problem is None:
                    self._known = told
            return self._known

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        extra: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Process:
        """Start a command of theirs, in a session of its own; it ends with the helper.

        Args:
            cwd: its working directory; None: their home.
            extra: what is added to their environment.

        Raises:
            OSError: it could not be started.
        """
        theirs = await self.environment()
        return await spawn(
            argv,
            env={**theirs.environment, **(extra or {})},
            cwd=cwd or theirs.home,
            umask=theirs.umask,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            parent_death="kill",
        )
