"""How holder, switchboard and egress are locked in: what each sees, and what it may do.

Three things are particular to them. The holder *is* the user and network namespace, made with its
sandbox. The two others enter those first (nsenter) and get the rest of a sandbox inside, so that
their capabilities count in that namespace and nowhere else. The egress stays in the host's network:
that is its job.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Final

from vmgr.sandbox import Need, Rights, Sandbox, find_bubblewrap, program_need
from vmgr.sandbox.python import python_files
from vmgr.spawner import minimal_environment

__all__ = [
    "EGRESS_RIGHTS",
    "HOLDER_RIGHTS",
    "NEXT_HOLDER_RIGHTS",
    "SWITCHBOARD_RIGHTS",
    "Namespaces",
    "egress_need",
    "holder_need",
    "python_environment",
    "sandboxes",
    "switchboard_need",
    "which",
]

_TUN: Final = Path("/dev/net/tun")
_RESOLV_CONF: Final = Path("/etc/resolv.conf")

HOLDER_RIGHTS: Final = Rights(root=True)
# Of one that takes the place of a holder that was killed, in the namespaces that are.
NEXT_HOLDER_RIGHTS: Final = Rights(user_namespace=False)
SWITCHBOARD_RIGHTS: Final = Rights(user_namespace=False, capabilities=("CAP_NET_ADMIN",))
# What it has until its own sandbox (--enable-sandbox, --enable-seccomp) leaves it the last of them.
EGRESS_RIGHTS: Final = Rights(
    user_namespace=False,
    capabilities=(
        "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETPCAP", "CAP_SYS_CHROOT", "CAP_NET_BIND_SERVICE",
    ),
)  # fmt: skip


def sandboxes(*, required: bool) -> list[Sandbox]:
    """Those to try, best first. What works is known when it has worked.

    Args:
        required: none without namespaces will do.
    """
    setpriv = which("setpriv")
    bubblewrap = find_bubblewrap()
    found = []
    if bubblewrap is not None and setpriv is not None:
        found = [Sandbox("namespaces", "", bubblewrap=bubblewrap, setpriv=setpriv)]
    return found if required else [*found, Sandbox("filter", "")]


def which(program: str) -> Path | None:
    """Where a program is."""
    found = shutil.which(program, path=minimal_environment()["PATH"])
    return None if found is None else Path(found)


class Namespaces:
    """The user and network namespace in which everything is, kept open: no process need be in them.

    Args:
        pid: a process that is in both.

    Raises:
        OSError: it has ended.
    """

    def __init__(self, pid: int) -> None:
        self._fds: dict[str, int] = {}
        try:
            for name in ("user", "net"):
                self._fds[name] = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def network(self) -> int:
        """Another fd of the network namespace, the caller's to close."""
        return os.dup(self._fds["net"])

    def entering(self, *names: str) -> list[str]:
        """The beginning of a command that runs in them."""
        where = [f"--{name}=/proc/{os.getpid()}/fd/{self._fds[name]}" for name in names]
        return ["nsenter", *where, "--preserve-credentials", "--"]

    def close(self) -> None:
        """Let go of them: they end with the last process in them."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


async def holder_need() -> Need:
    """A shell that turns into a `sleep`."""
    shell, sleep = which("sh"), which("sleep")
    if shell is None or sleep is None:
        raise FileNotFoundError(2, os.strerror(2), "sh, sleep")
    return await program_need(shell) + await program_need(sleep)


async def switchboard_need() -> Need:
    """Python, its modules and ours, libnftables, the tun device, the names of resolvers."""
    program, *files = await asyncio.to_thread(lambda: [*python_files(), *_resolvers()])
    return await program_need(program, *files) + Need(
        devices=(_TUN,),
        network=True,  # that of the holder
    )


async def egress_need(program: Path) -> Need:
    """slirp4netns or pasta; the directories are for the sandbox that each makes itself."""
    return await program_need(program) + Need(
        devices=(_TUN,),
        network=True,
        own_proc=True,  # it opens the holder's namespace by the name of an fd
        empty=(Path("/tmp"), Path("/etc"), Path("/run")),  # noqa: S108 (not the host's)
    )


def python_environment() -> dict[str, str]:
    """What our own Python needs to find our modules."""
    return {name: os.environ[name] for name in ("PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}


def _resolvers() -> list[Path]:
    """What it takes to read /etc/resolv.conf as it is at any later moment.

    Mostly it is a link into a directory where a service writes it, often by putting another file in
    its place, so that directory is seen whole. Where the file itself lies in /etc, an ordinary user
    gets /etc, which anybody may read; of root, who may read the passwords there, only the file.
    """
    target = _RESOLV_CONF.resolve()
    if not target.exists():
        return []
    if target.parent != _RESOLV_CONF.parent:
        return [_RESOLV_CONF, target.parent]
    return [_RESOLV_CONF if os.getuid() == 0 else _RESOLV_CONF.parent]
