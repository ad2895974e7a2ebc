"""What can go wrong, as sentences a person can act on.

The tree::

    VmgrError
     ├── UsageError              what was asked cannot be asked           400  exit 2
     ├── NotFoundError           no such machine, image, job              404
     ├── ConflictError           a name is taken, a thing is in use       409
     │    └── WrongStateError    the machine's status does not permit it  409
     ├── ResourceError           no memory, disk space, or limit reached  507
     ├── ConsentError            the person has not agreed to it             403
     ├── UnsupportedError        this host or machine cannot do it        501
     ├── MachineError            the machine or its VMM failed            502
     │    ├── BootError          it never said hello
     │    ├── AgentError         its agent broke the protocol or is gone
     │    └── ExecError          the command could not be started         (exit 125-127)
     ├── StateError              vmgr's own files are unusable            500
     ├── HelperUnavailableError  the helper cannot be started or reached  (client only)
     └── CancelledByUserError    Ctrl-C                                   exit 130

Each carries one sentence and, where there is one, the next step to try. Facts live in attributes,
`__str__` composes them. Over the API an error is `vmgr.api.models.ErrorBody`; the client turns it
back into the same class.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AgentError",
    "BootError",
    "CancelledByUserError",
    "ConflictError",
    "ConsentError",
    "ExecError",
    "HelperUnavailableError",
    "MachineError",
    "NotFoundError",
    "ResourceError",
    "StateError",
    "UnsupportedError",
    "UsageError",
    "VmgrError",
    "WrongStateError",
    "broken_installation",
    "error_from_wire",
]


class VmgrError(Exception):
    """Base of all errors meant for people.

    Args:
        message: one sentence without a final full stop.
        next_step: what to try next, a full clause in the imperative, or None.
        details: JSON-able facts for programs.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.details = details or {}

    def __str__(self) -> str:
        if self.next_step:
            return f"{self.message}; {self.next_step}"
        return self.message


class UsageError(VmgrError):
    """What was asked cannot be asked."""

    code = "usage"
    http_status = 400
    exit_code = 2


class NotFoundError(VmgrError):
    """There is no such machine, image or job."""

    code = "not-found"
    http_status = 404


class ConflictError(VmgrError):
    """A name is taken, or a thing is in use."""

    code = "conflict"
    http_status = 409


class WrongStateError(ConflictError):
    """The machine's status does not permit what was asked.

    `details` holds `machine`, `seen` (its status) and `needed` (statuses that permit it).
    """

    code = "wrong-state"


class ResourceError(VmgrError):
    """The host lacks memory or disk space, or a limit is reached."""

    code = "no-resources"
    http_status = 507


class ConsentError(VmgrError):
    """The person has to agree to it, and has not."""

    code = "no-consent"
    http_status = 403


class UnsupportedError(VmgrError):
    """This host, machine or image cannot do it."""

    code = "unsupported"
    http_status = 501


class MachineError(VmgrError):
    """The machine or its VMM failed."""

    code = "machine-failed"
    http_status = 502


class BootError(MachineError):
    """The machine never became ready. `details["console"]` has the tail of its console."""

    code = "boot-failed"


class AgentError(MachineError):
    """The machine's agent is gone or broke the protocol."""

    code = "agent-failed"


class ExecError(MachineError):
    """The command could not be started.

    `details["exit_code"]` is 127 when it was not found, 126 when it is not executable, else 125.
    """

    code = "exec-failed"

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """The exit code podman and docker use for this failure."""
        return int(self.details.get("exit_code", 125))


class StateError(VmgrError):
    """vmgr's own files are unusable."""

    code = "bad-state"


class UnfitStateError(StateError):
    """What was saved is missing, damaged, or does not fit any more: trying again is of no use."""

    code = "unfit-state"


class HelperUnavailableError(VmgrError):
    """The helper can neither be reached nor started."""

    code = "helper-unavailable"


class CancelledByUserError(VmgrError):
    """Ctrl-C."""

    code = "cancelled"
    exit_code = 130


_BY_CODE: dict[str, type[VmgrError]] = {
    cls.code: cls
    for cls in (
        UsageError, NotFoundError, ConflictError, WrongStateError, ResourceError, ConsentError,
        UnsupportedError, MachineError, BootError, AgentError, ExecError, StateError,
        UnfitStateError, HelperUnavailableError, CancelledByUserError,
    )
}  # fmt: skip


def error_from_wire(
    code: str, message: str, next_step: str | None, details: dict[str, Any] | None
) -> VmgrError:
    """Make the error that `code` names; an unknown code gives a plain `VmgrError`."""
    return _BY_CODE.get(code, VmgrError)(message, next_step=next_step, details=details)


def broken_installation(module: str | None) -> StateError:
    """The error for a Python module that cannot be imported: not a bug, but files that are gone."""
    return StateError(
        f"vmgr's installation is broken: its Python module {module or 'of some name'} is missing",
        next_step="install vmgr again as you did before (in a checkout: ./dev clean; ./dev setup)",
    )
