"""What can be told of a command before any machine is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmgr.agent.failures import printable
from vmgr.errors import UsageError

if TYPE_CHECKING:
    from vmgr.agent.messages import ExecRequest

__all__ = ["check_exec"]

# docs/agent-protocol.md, "exec"
_LABEL_MAX: Final = 256
_ARGV_MAX: Final = 4_096


def check_exec(request: ExecRequest) -> None:
    """See that the request can be asked.

    Raises:
        UsageError: it cannot.
    """
    if not request.argv and not request.login:
        raise UsageError("there is no command to run", next_step="name one, or ask for a shell")
    if len(request.argv) > _ARGV_MAX:
        raise UsageError(f"a command has at most {_ARGV_MAX} arguments, not {len(request.argv)}")
    if any(b"\0" in text for text in (*request.argv, *request.env, request.cwd or b"")):
        raise UsageError("arguments, environment and paths cannot hold a NUL character")
    for entry in request.env:
        if entry.find(b"=") < 1:
            shown = printable(entry.decode(errors="replace"))
            raise UsageError(f"{shown} is not NAME=value", next_step="give each variable a name")
    if len(request.label.encode()) > _LABEL_MAX:
        raise UsageError(f"a label has at most {_LABEL_MAX} bytes")
