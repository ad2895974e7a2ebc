from __future__ import annotations

import pytest

from vmgr.agent import messages as m
from vmgr.agent.failures import printable, to_error
from vmgr.errors import (
    AgentError,
    ConflictError,
    ExecError,
    NotFoundError,
    ResourceError,
    UnsupportedError,
    VmgrError,
)

EXEC = m.ExecRequest(argv=[b"nope", b"-x"], user="ann:staff", cwd=b"/gone")


@pytest.mark.parametrize(
    ("code", "errno", "exit_code", "sentence"),
    [
        ("not-found", 2, 127, "the command nope was not found in box"),
        (
            "not-executable",
            13,
            126,
            "the command nope in box cannot be executed: Permission denied",
        ),
        ("not-executable", None, 126, "the command nope in box cannot be executed"),
        ("no-such-user", None, 125, "there is no user ann:staff in box"),
        ("no-such-directory", 2, 125, "there is no directory /gone in box"),
        ("from-the-future", None, 125, "the command nope could not be started in box: why"),
    ],
)
def test_a_command_that_did_not_start_exits_as_with_podman(
    code: str, errno: int | None, exit_code: int, sentence: str
) -> None:
    error = to_error(m.Failure(code=code, message="why", errno=errno), EXEC, "box")
    assert isinstance(error, ExecError)
    assert (error.message, error.exit_code) == (sentence, exit_code)


@pytest.mark.parametrize(
    ("code", "request_", "kind", "sentence"),
    [
        ("taken-over", m.Attach(job=3), ConflictError, "another client has taken over the command"),
        ("taken-over", EXEC, ConflictError, "another client has taken over the command"),
        ("too-many-jobs", EXEC, ResourceError, "too many commands are running in box"),
        ("no-such-job", m.Attach(job=3), NotFoundError, "there is no job 3 in box"),
        ("no-such-job", m.Forget(job=4), NotFoundError, "there is no job 4 in box"),
        ("job-running", m.Forget(job=4), ConflictError, "job 4 in box is still running"),
        ("unsupported", m.Grow(), UnsupportedError, "the agent of box cannot do this: why"),
        ("io", m.Grow(), AgentError, "the agent of box refused: why"),
    ],
)
def test_other_refusals(
    code: str, request_: m.Request, kind: type[VmgrError], sentence: str
) -> None:
    error = to_error(m.Failure(code=code, message="why"), request_, "box")
    assert type(error) is kind
    assert error.message == sentence


def test_a_stream_that_the_agent_ended_did_start() -> None:
    failure = m.Failure(code="fell-behind", message="the consumer did not keep up")
    error = to_error(failure, EXEC, "box", opened=True)
    assert type(error) is AgentError
    assert error.message == ("the agent of box let go of the command: the consumer did not keep up")


def test_what_a_machine_says_cannot_steer_a_terminal() -> None:
    failure = m.Failure(code="io", message="\x1b[2J\r\nroot# \u202egnp.exe")
    error = to_error(failure, m.Grow(), "box")
    assert error.message.isprintable()
    assert printable("é ü") == "é ü"


def test_what_a_machine_says_is_not_long() -> None:
    assert len(printable("x" * 4096)) == 201


def test_a_login_shell_has_a_name_in_sentences() -> None:
    error = to_error(m.Failure(code="not-found"), m.ExecRequest(login=True), "box")
    assert error.message == "the command login shell was not found in box"
