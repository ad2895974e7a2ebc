"""What the checks are given: whose host it is, and where to look.

The directories can be others, so that tests show hosts that the one they run on is not.
"""

from __future__ import annotations

import os
import pwd
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vmgr.api.models import Check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from vmgr.config import Config
    from vmgr.paths import Paths
    from vmgr.vmm import Accelerator

__all__ = ["Command", "Host", "error", "good", "warning"]


class Command(str):
    """A fix that a shell can run as it is."""

    __slots__ = ()


@dataclass(frozen=True)
class Host:
    """This host, for one examination."""

    paths: Paths
    config: Config
    executor: Executor
    """For whatever may block."""
    accelerator: Callable[[], Awaitable[Accelerator]] | None = None
    """Who knows the accelerator in use; None: only what can be told at once."""
    egress: tuple[str, str | None] | None = None
    """Which program leads machines to the internet just now, and why it is not the wanted one."""
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    etc: Path = Path("/etc")
    dev: Path = Path("/dev")
    uid: int = field(default_factory=os.geteuid)

    @property
    def user(self) -> str:
        """The person's login name."""
        return self.name_of(self.uid)

    def name_of(self, uid: int) -> str:
        """A user's login name, or the number where there is none."""
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def as_root(self, *commands: str) -> Command:
        """`commands`, one after the other, as the person must type them to have root run them."""
        prefix = "" if self.uid == 0 else "sudo "
        return Command(" && ".join(prefix + command for command in commands))

    def write_as_root(self, text: str, file: str, *then: str) -> Command:
        """A command that puts `text` into `file`, then runs `then`."""
        quoted = shlex.quote(text.replace("\\", r"\\").replace("%", "%%").replace("\n", r"\n"))
        return Command(f"printf {quoted} | {self.as_root(f'tee {file}', *then)}")


def good(name: str, summary: str) -> Check:
    """All is well."""
    return Check(name=name, status="ok", summary=summary)


def warning(name: str, summary: str, fix: str | None = None) -> Check:
    """Something works less well, or not yet."""
    return _check(name, "warning", summary, fix)


def error(name: str, summary: str, fix: str | None = None) -> Check:
    """Machines cannot be made or started."""
    return _check(name, "error", summary, fix)


def _check(name: str, status: Literal["warning", "error"], summary: str, fix: str | None) -> Check:
    return Check(
        name=name, status=status, summary=summary, fix=None if fix is None else str(fix),
        runnable=isinstance(fix, Command),
    )  # fmt: skip
