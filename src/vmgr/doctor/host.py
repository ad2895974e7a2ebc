"""What the checks are given: whose host it is, and where to look.

The directories can be others, so that tests show hosts that the one they run on is not.
"""

from __future__ import annotations

import os
import pwd
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmgr.api.models import Check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from vmgr.config import Config
    from vmgr.paths import Paths
    from vmgr.vmm import Accelerator

__all__ = ["Host", "error", "good", "warning"]


@dataclass(frozen=True)
class Host:
    """This host, for one examination."""

    paths: Paths
    config: Config
    executor: Executor
    """For whatever may block."""
    accelerator: Callable[[], Awaitable[Accelerator]] | None = None
    """Who knows the accelerator in use; None: only what can be told at once."""
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    etc: Path = Path("/etc")
    dev: Path = Path("/dev")
    uid: int = field(default_factory=os.geteuid)

    @property
    def user(self) -> str:
        """The person's login name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def as_root(self, *commands: str) -> str:
        """`commands`, one after the other, as the person must type them to have root run them."""
        prefix = "" if self.uid == 0 else "sudo "
        return " && ".join(prefix + command for command in commands)

    def write_as_root(self, text: str, file: str, *then: str) -> str:
        """A command that puts `text` into `file`, then runs `then`."""
        quoted = shlex.quote(text.replace("\\", r"\\").replace("%", "%%").replace("\n", r"\n"))
        return f"printf {quoted} | {self.as_root(f'tee {file}', *then)}"


def good(name: str, summary: str) -> Check:
    """All is well."""
    return Check(name=name, status="ok", summary=summary)


def warning(name: str, summary: str, fix: str | None = None) -> Check:
    """Something works less well, or not yet."""
    return Check(name=name, status="warning", summary=summary, fix=fix)


def error(name: str, summary: str, fix: str | None = None) -> Check:
    """Machines cannot be made or started."""
    return Check(name=name, status="error", summary=summary, fix=fix)
