"""The agent's ERROR codes as errors for people."""

from __future__ import annotations

import os
from typing import Any, Final

from vmgr.agent.messages import Attach, ExecRequest, Failure, Forget, Request, SignalJob
from vmgr.errors import (
    AgentError,
    ConflictError,
    ExecError,
    NotFoundError,
    ResourceError,
    UnsupportedError,
    VmgrError,
)

__all__ = ["printable", "to_error"]

# What a shell, and after it docker and podman, exit with.
_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126
_NOT_STARTED: Final = 125
_LONGEST: Final = 200


def printable(text: str) -> str:
    """`text` from a machine, fit for a terminal: one line, no control characters, not long."""
    shown = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: _LONGEST + 1]
    )
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"


def to_error(
    failure: Failure, request: Request, machine: str, *, opened: bool = False
) -> VmgrError:
    """The error for `failure` in the machine of that name.

    Args:
        failure: what the agent said.
        request: what it answers.
        machine: for sentences.
        opened: the request had been accepted, and its stream is ended by this.
    """
    code = failure.code
    said = printable(failure.message or code)
    details: dict[str, Any] = {"code": printable(code), "errno": failure.errno}
    next_step = None
    kind: type[VmgrError] = AgentError
    sentence = f"the agent of {machine} refused: {said}"
    if code == "taken-over":
        kind, sentence = ConflictError, "another client has taken over the command"
    elif code in {"too-many-jobs", "too-many-channels"}:
        kind, sentence = ResourceError, f"too many commands are running in {machine}"
        next_step = "wait until some of them have ended"
    elif opened:
        sentence = f"the agent of {machine} let go of the command: {said}"
        next_step = f"see whether it still runs with `vmgr info {machine}`"
    elif isinstance(request, ExecRequest):
        kind = ExecError
        sentence, next_step, exit_code = _exec_failed(failure, request, machine)
        details["exit_code"] = exit_code
    elif code == "no-such-job" and isinstance(request, Attach | Forget | SignalJob):
        kind, sentence = NotFoundError, f"there is no job {request.job} in {machine}"
    elif code == "job-running" and isinstance(request, Forget):
        kind, sentence = ConflictError, f"job {request.job} in {machine} is still running"
        next_step = "end it first"
    elif code in {"unsupported", "unknown-operation"}:
        kind, sentence = UnsupportedError, f"the agent of {machine} cannot do this: {said}"
    return kind(sentence, next_step=next_step, details=details)


def _exec_failed(
    failure: Failure, request: ExecRequest, machine: str
) -> tuple[str, str | None, int]:
    """Sentence, next step and exit code for a command that did not start."""
    shown = printable(request.argv[0].decode(errors="replace")) if request.argv else "login shell"
    match failure.code:
        case "not-found":
            return f"the command {shown} was not found in {machine}", None, _NOT_FOUND
        case "not-executable":
            why = f": {os.strerror(failure.errno)}" if failure.errno else ""
            sentence = f"the command {shown} in {machine} cannot be executed{why}"
            return sentence, None, _NOT_EXECUTABLE
        case "no-such-user":
            sentence = f"there is no user {printable(request.user)} in {machine}"
            return sentence, "name a user of the machine, or a number", _NOT_STARTED
        case "no-such-directory":
            where = printable((request.cwd or b"").decode(errors="replace"))
            return f"there is no directory {where} in {machine}", None, _NOT_STARTED
        case _:
            said = printable(failure.message or failure.code)
            sentence = f"the command {shown} could not be started in {machine}: {said}"
            return sentence, None, _NOT_STARTED
