"""One process as /proc shows it; see proc(5). Nothing here judges."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vmgr.api.audit import AuditedMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NAMESPACES", "Seen", "is_guest_memory", "look", "signal_name", "unix_sockets"]

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_TUN: Final = "/dev/net/tun"
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_SECCOMP: Final[tuple[Literal["off", "strict", "filter"], ...]] = ("off", "strict", "filter")
# QEMU names the memory that it makes after its back end; a saved one is loaded into ours.
_GUEST_MEMORY: Final = re.compile(r"memfd:(memory-backend|vmgr-memory)")
# The number of ioprio_get(2), which the C library has no function for: syscall(2), asm/unistd.h.
_IOPRIO_GET: Final = {"x86_64": 252}.get(os.uname().machine, 31)
_IOPRIO_WHO_PROCESS: Final = 1  # despite its name, of one thread; linux/ioprio.h
_IOPRIO_CLASSES: Final = ("none", "realtime", "best-effort", "idle")
_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S{4} \S+ \S+ \d+\s*(.*)")


@dataclass(frozen=True)
class Seen:
    """What there is to see of a process."""

    pid: int
    parent: int
    program: str
    uids: list[int]
    umask: int
    cwd: str
    session_leader: bool
    terminal: bool
    fds: dict[int, str]
    blocked: set[int]
    ignored: set[int]
    caught: set[int]
    namespaces: dict[str, str]
    seccomp: Literal["off", "strict", "filter"]
    no_new_privs: bool
    capabilities: dict[str, int]
    core_limit: int | None
    environment: list[str]
    io_priorities: list[str]
    guest_memory: list[AuditedMemory]


def look(pid: int) -> Seen:
    """Look at a process.

    Raises:
        OSError: it has ended, or is another user's.
    """
    proc = Path(f"/proc/{pid}")
    opened = _fds(proc)
    status = dict(
        line.split(":", 1)
        for line in proc.joinpath("status").read_text().splitlines()
        if ":" in line
    )
    fields = proc.joinpath("stat").read_text().rpartition(")")[2].split()
    environ = proc.joinpath("environ").read_bytes().split(b"\0")
    return Seen(
        pid=pid,
        parent=int(fields[1]),
        program=os.fsdecode(proc.joinpath("cmdline").read_bytes().split(b"\0")[0]),
        uids=[int(uid) for uid in status["Uid"].split()],
        umask=int(status["Umask"], 8),
        cwd=str(proc.joinpath("cwd").readlink()),
        session_leader=int(fields[3]) == pid,
        terminal=fields[4] != "0",
        blocked=_signals(status["SigBlk"]),
        ignored=_signals(status["SigIgn"]),
        caught=_signals(status["SigCgt"]),
        namespaces={name: str(proc.joinpath("ns", name).readlink()) for name in NAMESPACES},
        seccomp=_SECCOMP[int(status["Seccomp"])],
        no_new_privs=status["NoNewPrivs"].strip() == "1",
        capabilities={name: int(status[name], 16) for name in _CAPABILITIES},
        core_limit=_core_limit(proc),
        environment=sorted({os.fsdecode(entry.partition(b"=")[0]) for entry in environ} - {""}),
        io_priorities=sorted(_io_priorities(proc)),
        guest_memory=list(_guest_memory(proc)),
        # What is open for the moment of reading it (something below /proc) is not kept.
        fds=dict(sorted(opened.items() & _fds(proc).items())),
    )


def is_guest_memory(target: str) -> bool:
    """Whether a file, by its name in /proc, is a machine's memory or is to become one's."""
    return _GUEST_MEMORY.search(target) is not None


def unix_sockets() -> dict[str, str]:
    """The path of each bound unix socket of our network namespace, by `socket:[INODE]`."""
    found = {}
    for line in Path("/proc/self/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        found[f"socket:[{fields[6]}]"] = fields[7] if len(fields) > 7 else ""  # noqa: PLR2004
    return found


def _fds(proc: Path) -> dict[int, str]:
    found = {}
    for entry in proc.joinpath("fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            target = os.readlink(entry)  # noqa: PTH115 (not always a path)
            # The name is of the file system in which it was opened, and that may be no more.
            if target in {"/", _TUN} and "\niff:" in (proc / "fdinfo" / entry.name).read_text():
                target = _TUN
            found[int(entry.name)] = target
    return found


def _signals(mask: str) -> set[int]:
    bits = int(mask, 16)
    # 32 and 33 are the C library's own.
    return {n for n in range(1, 65) if bits >> (n - 1) & 1} - {32, 33}


def signal_name(number: int) -> str:
    """The name of a signal, for people."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRT{number}"


def _core_limit(proc: Path) -> int | None:
    for line in proc.joinpath("limits").read_text().splitlines():
        if line.startswith("Max core file size"):
            soft = line.split()[4]
            return None if soft == "unlimited" else int(soft)
    return None


def _io_priorities(proc: Path) -> set[str]:
    """Of all threads, as `best-effort 5`."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = set()
    for task in proc.joinpath("task").iterdir():
        value = libc.syscall(_IOPRIO_GET, _IOPRIO_WHO_PROCESS, int(task.name))
        if value >= 0:  # else it has ended
            name = _IOPRIO_CLASSES[value >> 13 & 3]
            found.add(name if name in {"none", "idle"} else f"{name} {value & 7}")
    return found


def _guest_memory(proc: Path) -> Iterator[AuditedMemory]:
    name, size = "", 0
    for line in proc.joinpath("smaps").read_text(errors="replace").splitlines():
        if mapping := _MAPPING.fullmatch(line):
            name, size = mapping[3], int(mapping[2], 16) - int(mapping[1], 16)
        elif line.startswith("VmFlags:") and _GUEST_MEMORY.search(name):
            yield AuditedMemory(name=name, bytes=size, dumped="dd" not in line.split())
