"""Being root for a build without being it.

Files in an image belong to root and to system users. There are three ways to lay them out:

- **root**: the helper runs as root. Builds get a mount and a pid namespace all the same, so that
  whatever they mount or leave running is gone with them, however they end.
- **subids**: an ordinary user with a range in /etc/subuid and /etc/subgid and the setuid helpers of
  the package uidmap. In a user namespace where the user is root and the range gives the other ids,
  everything is real.
- **fakeroot**: neither; fakeroot remembers the owners and mke2fs, run by it, writes them down.

Which one works is tried, not guessed: sysctls, LSMs and containers all have a say.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.artifact.tools import build_environment, missing_tools, require
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Privilege", "PrivilegeKind", "find_privilege"]

_PROBE_DEADLINE: Final = 20.0
_ALL_IDS: Final = 2**32 - 1
_SYSTEM_IDS: Final = 65_536  # Debian's policy: ids of packages, `nobody` and `nogroup` are below

# The pid namespace's first process dies with `unshare`, and the kernel ends all others with it.
_ALONE: Final = ("--pid", "--fork", "--kill-child")


class PrivilegeKind(enum.Enum):
    """How a build comes by root's powers."""

    ROOT = "root"
    SUBIDS = "subids"
    FAKEROOT = "fakeroot"


@dataclass(frozen=True)
class Privilege:
    """A way to run build commands as root, or nearly."""

    kind: PrivilegeKind
    namespaces: tuple[str, ...]
    """The command that sets up the namespaces; empty where there are to be none."""
    ids: int
    """User and group ids from 0 up to this can be given to files."""
    reason: str
    """Why no better one is used; empty for the best."""

    def wrap(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` seeing itself as uid 0."""
        fakeroot = ("fakeroot", "--") if self.kind is PrivilegeKind.FAKEROOT else ()
        return [*self.namespaces, *fakeroot, *(os.fspath(a) for a in argv)]

    def isolate(self, argv: Sequence[str | Path]) -> list[str]:
        """The same for a command that brings its own fakeroot."""
        return [*self.namespaces, *(os.fspath(a) for a in argv)]


async def find_privilege() -> Privilege:
    """Try the ways, best first.

    Raises:
        UnsupportedError: none works; the next step says which package helps.
    """
    if os.geteuid() == 0:
        alone: tuple[str, ...] = ("unshare", "--mount", *_ALONE, "--")
        failure = await _attempt([*alone, "true"])
        prefix = alone if failure is None else ()
        return Privilege(PrivilegeKind.ROOT, prefix, _ALL_IDS, failure or "")
    namespace = (
        "unshare", "--user", "--map-root-user", "--map-auto", "--mount", *_ALONE, "--",
    )  # fmt: skip
    missing = missing_tools("newuidmap", "newgidmap")
    reason = f"{' and '.join(missing)} missing" if missing else ""
    if not reason:
        counts: list[int] = []
        reason = await _attempt([*namespace, "cat", "/proc/self/uid_map", "/proc/self/gid_map"],
                                counts) or ""  # fmt: skip
        if not reason and min(counts) >= _SYSTEM_IDS:
            return Privilege(PrivilegeKind.SUBIDS, namespace, min(counts), "")
        reason = reason or f"only {min(counts)} ids in /etc/subuid and /etc/subgid"
    require("fakeroot", "fakechroot")
    # A user namespace of one id is allowed in many places where ranges are not. It is only for the
    # pid namespace: fakeroot's daemon leaves every process group and would outlive the build. As
    # giving a file away fails there with EINVAL, which fakeroot takes for an error (unlike EPERM),
    # it is told not to try, see fakeroot(1).
    alone = ("unshare", "--user", "--map-current-user", *_ALONE, "--")
    alone = (*alone, "env", "FAKEROOTDONTTRYCHOWN=1")
    if await _attempt([*alone, "true"]) is not None:
        alone = ()
    return Privilege(PrivilegeKind.FAKEROOT, alone, _ALL_IDS, reason)


async def _attempt(argv: list[str], counts: list[int] | None = None) -> str | None:
    """Run a probe: why it failed, or None. Sums of the mapped ids go to `counts`."""
    try:
        done = await run(argv, env=build_environment(), deadline=_PROBE_DEADLINE)
    except ProcessFailedError as error:
        lines = error.output.strip().splitlines()
        return lines[-1] if lines else str(error.status)
    except (OSError, TimeoutError) as error:
        return str(error) or "no answer"
    if counts is not None:
        # Lines `inside outside count`, first of users, then of groups; both begin at inside 0.
        for line in done.stdout.decode().splitlines():
            inside, _outside, count = (int(word) for word in line.split())
            if inside == 0:
                counts.append(0)
            counts[-1] += count
    return None
