"""What an audit of vmgr's processes tells."""

from __future__ import annotations

from typing import Literal

from vmgr.api.models import Model

__all__ = ["AuditReport", "AuditedFd", "AuditedMemory", "AuditedProcess"]


class AuditedFd(Model, frozen=True, kw_only=True):
    """An open file of a process."""

    number: int
    target: str
    purpose: str | None
    """What it is for; None: nothing that it should have."""


class AuditedMemory(Model, frozen=True, kw_only=True):
    """A mapping of a machine's memory."""

    name: str
    bytes: int
    dumped: bool
    """Whether a core dump would hold it."""


class AuditedProcess(Model, frozen=True, kw_only=True):
    """One process of vmgr, as /proc shows it."""

    pid: int
    role: Literal["helper", "vmm", "monitor", "network", "share", "ssh", "archive", "worker"]
    machine: str | None
    program: str
    uids: list[int]
    """Real, effective, saved and file system user id."""
    umask: int
    cwd: str
    session_leader: bool
    terminal: bool
    fds: list[AuditedFd]
    signals_blocked: list[str]
    signals_ignored: list[str]
    signals_caught: list[str]
    namespaces_own: list[str]
    """Those that it does not share with the helper."""
    seccomp: Literal["off", "strict", "filter"]
    no_new_privs: bool
    capabilities: list[str]
    """Sets that are not empty, as `CapEff=000001ffffffffff`."""
    core_limit: int | None
    environment: list[str]
    """Names, never values."""
    io_priorities: list[str]
    """Of its threads, as `best-effort 5`; see ioprio_set(2)."""
    guest_memory: list[AuditedMemory]
    problems: list[str]
    """Rules that it breaks; see docs/process-model.md."""


class AuditReport(Model, frozen=True, kw_only=True):
    """All processes of this user's vmgr, and the rules that they break."""

    processes: list[AuditedProcess]
    problems: list[str]
    """Of all processes, each with the process's number and role."""
