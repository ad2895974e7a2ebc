"""What a machine says about its connections is not believed beyond what it must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from vmgr.api import streams as s
from vmgr.api.models import ExecSpec
from vmgr.client.jobstream import JobStream, Output
from vmgr.errors import ExecError
from vmgr.ssh.forwarding import _port
from vmgr.ssh.jobs import LineReader, StartedJob

if TYPE_CHECKING:
    from vmgr.client.aiojob import AsyncJob


class Said:
    """A job that has said all that it will."""

    def __init__(self) -> None:
        self.stream = JobStream(s.Start(spec=ExecSpec(login=True)))
        self.stream.exit = s.ExitResult(code=1)


def reader(*events: tuple[int, bytes]) -> LineReader:
    said = [Output(flow, data) for flow, data in events]
    return LineReader(StartedJob(cast("AsyncJob", Said()), list(said)))


async def test_lines_come_in_pieces_and_the_rest_is_kept() -> None:
    lines = reader((s.STDOUT, b"listen"), (s.STDOUT, b"ing 80 tok\naccepted 1 h 2\nraw\xff"))
    assert await lines.line_of("listening", 3) == ["listening", "80", "tok"]
    assert await lines.line() == ["accepted", "1", "h", "2"]
    assert lines.rest == b"raw\xff"


async def test_an_endless_line_is_none() -> None:
    assert await reader(*[(s.STDOUT, b"x" * 1_000)] * 10).line() is None


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([(s.STDERR, b"first\nhost: Connection "), (s.STDERR, b"refused\n")], "Connection refused"),
        ([(s.STDERR, b"x" * 100_000)], "x{900}"),
        ([(s.STDOUT, b"connected 2\n")], "without a word"),
        ([], "without a word"),
    ],
)
async def test_why_there_is_no_connection(events: list[tuple[int, bytes]], why: str) -> None:
    with pytest.raises(ExecError, match=why) as caught:
        await reader(*events).line_of("connected", 1)
    assert len(caught.value.message) <= 1_024


@pytest.mark.parametrize("text", ["", "-1", "²", "٣", "1" * 6, "1 2", "0x1"])
def test_what_is_no_port(text: str) -> None:
    assert _port(text) is None


def test_a_port() -> None:
    assert [_port(text) for text in ("0", "22", "65535", "65536")] == [0, 22, 65535, None]
