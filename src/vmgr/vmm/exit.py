"""How a VMM ended, from what QEMU said in events, its log and its exit status."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from vmgr.errors import ConflictError, MachineError, ResourceError, VmgrError

if TYPE_CHECKING:
    from vmgr.spawner import ExitStatus

__all__ = ["Cause", "VmmExit", "explain_exit", "failure_to_start"]

Cause = Literal["poweroff", "reboot", "panic", "asked", "failed", "unknown"]

# Values of `reason` in the SHUTDOWN event: ShutdownCause in QEMU's qapi/run-state.json.
_CAUSES: Final[dict[str, Cause]] = {
    "guest-shutdown": "poweroff",
    "guest-reset": "reboot",
    "guest-panic": "panic",
    "host-qmp-quit": "asked",
    "host-qmp-system-reset": "asked",
    "host-signal": "asked",
    "host-ui": "asked",
}
_SENTENCES: Final[dict[Cause, str]] = {
    "poweroff": "the machine powered itself off",
    "reboot": "the machine rebooted",
    "panic": "the machine's kernel panicked",
    "asked": "its VMM was asked to end",
}
_TIMESTAMP: Final = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z\s+")
_LOG_LINE_MAX: Final = 500


@dataclass(frozen=True)
class VmmExit:
    """How a VMM ended."""

    status: ExitStatus
    cause: Cause
    reason: str
    """For people: one sentence without a final stop."""
    log_tail: str
    """The end of what the VMM said."""

    @property
    def by_guest(self) -> bool:
        """Whether the machine itself ended or restarted it."""
        return self.cause in {"poweroff", "reboot", "panic"}


def explain_exit(
    status: ExitStatus, shutdown: str | None, panic: str | None, asked: str | None, log_tail: str
) -> VmmExit:
    """Put together what is known.

    Args:
        shutdown: the `reason` of its SHUTDOWN event, if there was one.
        panic: what the guest's kernel said when it panicked, if it did.
        asked: why we ended it, if we did.
        log_tail: the end of its log.
    """
    cause: Cause = _CAUSES.get(shutdown or "", "unknown")
    if cause == "reboot" and panic is not None:
        cause = "panic"  # panic=-1: without a pvpanic driver a panic is a reset
    if cause == "unknown":
        if asked is not None:
            cause = "asked"
        elif not status.ok and (status.code is not None or status.signal is not None):
            cause = "failed"
    if cause == "asked" and asked is not None:
        reason = asked
    elif cause == "panic" and panic:
        reason = f"{_SENTENCES['panic']}: {panic}"
    elif cause in _SENTENCES:
        reason = _SENTENCES[cause]
    else:
        said = _last_line(log_tail)
        reason = f"its VMM {status}" + (f": {said}" if said and cause == "failed" else "")
    return VmmExit(status, cause, reason, log_tail)


def failure_to_start(name: str, ended: VmmExit) -> VmgrError:
    """The error for a VMM that ended before it could be spoken to."""
    text = ended.log_tail
    said = _last_line(text)
    details = {"machine": name, "vmm_log": text}
    if re.search(r'Failed to get "?\w+"? ?lock|Failed to lock byte', text):
        return ConflictError(
            f"the disk of machine {name} is in use by another process",
            next_step="end what uses it; fuser or lsof on the disk's file tell what that is",
            details=details,
        )
    if re.search(r"[Cc]annot (?:set up|allocate).*memory|Cannot allocate memory", text):
        return ResourceError(
            f"the host cannot give machine {name} its memory: {said}",
            next_step="stop other machines, or give this one less memory",
            details=details,
        )
    if "No space left on device" in text:
        return ResourceError(
            f"no space is left for machine {name}: {said}",
            next_step="free some disk space",
            details=details,
        )
    # What its sandbox says, or the program that QEMU follows in it.
    locked_out = re.match(r"(bwrap|ionice|prlimit|setpriv): ", said)
    return MachineError(
        f"the VMM of machine {name} did not start: {said or ended.reason}",
        next_step="see what this host permits with: vmgr doctor"
        if locked_out
        else f"look at: vmgr logs {name}",
        details=details,
    )


def _last_line(text: str) -> str:
    lines = [_TIMESTAMP.sub("", line).strip() for line in text.splitlines()]
    # A warning (a network device without a cable has one at each start) is no reason to end.
    lines = [line for line in lines if line and "warning: " not in line]
    if not lines:
        return ""
    # `qemu-system-x86_64: -device …: what is wrong`: the program's name says nothing.
    return (
        lines[-1].partition("qemu-system-x86_64: ")[2][:_LOG_LINE_MAX] or lines[-1][:_LOG_LINE_MAX]
    )
