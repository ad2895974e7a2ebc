"""Scripts of what the agent sends and what the session makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from vmgr.agent import messages as m
from vmgr.agent.events import (
    CreditReceived,
    DataReceived,
    EventReceived,
    Exited,
    FlowEnded,
    HelloReceived,
    Opened,
    Pong,
    RequestFailed,
    SessionEvent,
)
from vmgr.agent.flows import CreditError
from vmgr.agent.frames import (
    STDERR,
    STDIN,
    STDOUT,
    Frame,
    FrameBuffer,
    FrameType,
    ProtocolViolation,
    encode_credit,
)
from vmgr.agent.session import MAX_CHANNELS, MAX_DISCARD, Session
from vmgr.errors import ResourceError, UsageError

from .peer import agent_frame, hello_map, unpack

NONCE = b"0123456789abcdef"
T = FrameType


def started() -> Session:
    session = Session("test", random_bytes=lambda size: NONCE[:size])
    session.start([b"K" * 16], b"\xc1" + b"L" * 15)
    session.take_output()
    return session


def greeted() -> Session:
    session = started()
    session.receive(NONCE + agent_frame(T.HELLO, hello_map()))
    assert isinstance(session.next_event(), HelloReceived)
    return session


def running(request: m.Request | None = None) -> tuple[Session, int]:
    """A session with one job that was started on the channel given."""
    session = greeted()
    channel = session.open(request or m.ExecRequest(argv=[b"cat"], stdin=True))
    session.receive(agent_frame(T.OPENED, {"job": 1, "pid": 2}, channel=channel))
    assert isinstance(session.next_event(), Opened)
    session.take_output()
    return session, channel


def frames(session: Session) -> list[Frame]:
    buffer = FrameBuffer()
    buffer.feed(b"".join(session.take_output()))
    found = list(iter(buffer.next, None))
    assert len(buffer) == 0
    return found


def events(session: Session, *received: bytes) -> list[SessionEvent]:
    session.receive(b"".join(received))
    return list(iter(session.next_event, None))


# -- hello -----------------------------------------------------------------------------------------


def test_it_writes_marker_and_hello_at_once() -> None:
    session = Session("1.2", random_bytes=lambda size: NONCE[:size])
    session.start([b"K" * 16], b"L" * 16)
    marker, hello = session.take_output()
    assert marker == b"K" * 16
    assert unpack(hello[12:]) == {
        "versions": [1], "nonce": NONCE, "host": "1.2", "next_key": b"L" * 16, "tail": bytes(16),
    }  # fmt: skip


def test_requests_may_follow_the_hello_before_it_is_answered() -> None:
    session = started()
    channel = session.open(m.Sync())
    answer = agent_frame(T.OPENED, {}, channel=channel)
    [hello, opened] = events(session, NONCE, agent_frame(T.HELLO, hello_map()), answer)
    assert isinstance(hello, HelloReceived)
    assert opened == Opened(channel, m.Empty())


def test_a_frame_before_the_hello_is_a_violation() -> None:
    session = started()
    with pytest.raises(ProtocolViolation, match="PONG where its hello was due"):
        events(session, NONCE, agent_frame(T.PONG, b""))


def test_a_version_that_was_not_offered_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation, match="version 2"):
        events(started(), NONCE, agent_frame(T.HELLO, hello_map(version=2)))


def test_no_common_version_is_told_as_version_0() -> None:
    [hello] = events(started(), NONCE, agent_frame(T.HELLO, {"version": 0}))
    assert hello == HelloReceived(m.AgentHello(version=0))


def test_the_hello_comes_once() -> None:
    with pytest.raises(ProtocolViolation, match="unexpected HELLO"):
        events(greeted(), agent_frame(T.HELLO, hello_map()))


def test_residue_is_bounded() -> None:
    session = started()
    chunk = bytes(1 << 20)
    for _ in range(MAX_DISCARD // len(chunk)):
        assert events(session, chunk) == []
    with pytest.raises(ProtocolViolation, match="no answer to the hello"):
        events(session, chunk)


def test_a_broken_session_gives_nothing_and_keeps_nothing() -> None:
    session = greeted()
    with pytest.raises(ProtocolViolation):
        events(session, b"\xff" * 12)
    assert not session.ready
    assert events(session, agent_frame(T.EVENT, {"event": "oom"})) == []
    assert len(session._buffer) == 0


# -- a job's streams -------------------------------------------------------------------------------


def test_a_job_from_start_to_end() -> None:
    session = greeted()
    channel = session.open(m.ExecRequest(argv=[b"cat"], stdin=True))
    [opened] = frames(session)
    assert (opened.type, opened.channel) == (T.OPEN, channel)
    assert events(session, agent_frame(T.OPENED, {"job": 7, "pid": 70}, channel=channel)) == [
        Opened(channel, m.Started(job=7, pid=70))
    ]
    session.send_data(channel, b"hello")
    session.send_eof(channel)
    session.send_eof(channel)
    data, eof = frames(session)
    assert (data.type, data.flow, data.payload) == (T.DATA, STDIN, b"hello")
    assert (eof.type, eof.flow) == (T.EOF, STDIN)
    assert events(
        session,
        encode_credit(channel, STDIN, 5, 65_541),
        agent_frame(T.DATA, b"hello", channel=channel, flow=STDOUT),
        agent_frame(T.EOF, channel=channel, flow=STDOUT),
        agent_frame(T.DATA, b"", channel=channel, flow=STDERR),
        agent_frame(T.EXIT, {"code": 3}, channel=channel),
    ) == [
        CreditReceived(channel, 5, 65_541),
        DataReceived(channel, STDOUT, b"hello"),
        FlowEnded(channel, STDOUT),
        DataReceived(channel, STDERR, b""),
        Exited(channel, m.JobExit(code=3)),
    ]
    session.close(channel)
    [closed] = frames(session)
    assert (closed.type, closed.channel) == (T.CLOSE, channel)


def test_stdin_goes_out_in_frames_that_leave_the_line_to_others() -> None:
    session, channel = running()
    session.send_data(channel, b"x" * 65_536)
    assert [len(f.payload) for f in frames(session)] == [32_768, 32_768]
    with pytest.raises(CreditError):
        session.send_data(channel, b"y")
    assert session.stdin_room(channel) == 0


@pytest.mark.parametrize("length", range(1, 16))
def test_stdin_that_ends_like_a_marker_is_not_held_back_by_the_agent(length: int) -> None:
    session, channel = running()
    beginning = (b"\xc1" + b"L" * 15)[:length]
    session.send_data(channel, b"data" + beginning)
    data, nothing = frames(session)
    assert data.payload == b"data" + beginning
    assert (nothing.type, nothing.flow, nothing.payload) == (T.DATA, STDIN, b"")
    session.send_data(channel, beginning + b"data")
    assert len(frames(session)) == 1


def test_output_beyond_its_credit_is_a_violation() -> None:
    session, channel = running()
    part = agent_frame(T.DATA, b"x" * 32_768, channel=channel, flow=STDOUT)
    assert len(events(session, part, part)) == 2
    session.grant(channel, STDOUT, 10, 65_537)
    assert [f.credit for f in frames(session)] == [(10, 65_537)]
    one = agent_frame(T.DATA, b"x", channel=channel, flow=STDOUT)
    assert len(events(session, one)) == 1
    with pytest.raises(ProtocolViolation, match="more data than was granted"):
        events(session, one)


def test_each_output_has_its_own_credit() -> None:
    session, channel = running()
    part = b"x" * 32_768
    for flow in (STDOUT, STDERR):
        assert (
            len(events(session, *[agent_frame(T.DATA, part, channel=channel, flow=flow)] * 2)) == 2
        )


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (agent_frame(T.DATA, b"x", channel=1, flow=STDIN), "sent on stdin"),
        (agent_frame(T.EOF, channel=1, flow=STDIN), "sent on stdin"),
        (encode_credit(1, STDOUT, 0, 65_536), "a flow that the agent sends itself"),
        (encode_credit(1, STDIN, 1, 65_537), "were not sent"),
        (agent_frame(T.OPENED, {"job": 1, "pid": 2}, channel=1), "OPENED twice"),
        (agent_frame(T.DATA, b"x", channel=2, flow=STDOUT), "never opened"),
        (agent_frame(T.EXIT, {"code": 0}, channel=9), "never opened"),
        (agent_frame(T.OPEN, {}, channel=1), "unexpected OPEN"),
        (agent_frame(T.CLOSE, channel=1), "unexpected CLOSE"),
        (agent_frame(T.CONTROL, {}, channel=1), "unexpected CONTROL"),
        (agent_frame(T.PING, b""), "unexpected PING"),
        (agent_frame(T.PONG, b""), "no ping"),
        (agent_frame(T.EXIT, {}, channel=1), "a bad JobExit message"),
        (agent_frame(T.EVENT, []), "a bad AgentEvent message"),
    ],
)
def test_what_the_agent_may_not_do(frame: bytes, reason: str) -> None:
    session, channel = running()
    assert channel == 1
    with pytest.raises(ProtocolViolation, match=reason):
        events(session, frame)


@pytest.mark.parametrize(
    "frame",
    [
        agent_frame(T.DATA, b"x", channel=1, flow=STDOUT),
        agent_frame(T.EXIT, {"code": 0}, channel=1),
        agent_frame(T.ERROR, {"code": "x"}, channel=1),
        agent_frame(T.OPENED, {"job": 1, "pid": 2}, channel=1),
    ],
)
def test_nothing_comes_after_the_exit(frame: bytes) -> None:
    session, _ = running()
    events(session, agent_frame(T.EXIT, {"signal": 9, "core": False}, channel=1))
    with pytest.raises(ProtocolViolation):
        events(session, frame)


def test_streams_do_not_begin_before_they_are_opened() -> None:
    session = greeted()
    channel = session.open(m.ExecRequest(argv=[b"true"]))
    with pytest.raises(ProtocolViolation, match="DATA on a channel that is OPENING"):
        events(session, agent_frame(T.DATA, b"x", channel=channel, flow=STDOUT))


def test_a_refusal_ends_the_channel() -> None:
    session = greeted()
    channel = session.open(m.ExecRequest(argv=[b"nope"]))
    refusal = agent_frame(
        T.ERROR, {"code": "not-found", "message": "m", "errno": 2}, channel=channel
    )
    failure = m.Failure(code="not-found", message="m", errno=2)
    assert events(session, refusal) == [RequestFailed(channel, failure)]
    frames(session)
    session.send_data(channel, b"late")
    session.close(channel)
    assert frames(session) == []


def test_what_was_on_its_way_when_a_channel_was_closed_is_dropped() -> None:
    session, channel = running()
    session.close(channel)
    assert events(
        session,
        agent_frame(T.DATA, b"x", channel=channel, flow=STDOUT),
        agent_frame(T.EXIT, {"code": 0}, channel=channel),
    ) == []  # fmt: skip


def test_attaching_goes_on_where_the_agent_says() -> None:
    session = greeted()
    channel = session.open(m.Attach(job=1, stdin_sent=100, stdout_received=1000, stderr_received=0))
    reply = {"job": 1, "pid": 2, "stdin_received": 90, "stdout_from": 5000, "stderr_from": 0}
    events(session, agent_frame(T.OPENED, reply, channel=channel))
    frames(session)
    assert session.stdin_room(channel) == 65_536
    with pytest.raises(CreditError):
        session.grant(channel, STDOUT, 4999, 70_536)
    session.grant(channel, STDOUT, 5000, 70_536)
    assert [f.credit for f in frames(session)] == [(5000, 70_536)]
    session.send_data(channel, b"x" * 10)
    assert events(session, encode_credit(channel, STDIN, 100, 65_626)) == [
        CreditReceived(channel, 100, 65_626)
    ]


def test_attaching_never_goes_back() -> None:
    session = greeted()
    channel = session.open(m.Attach(job=1, stdout_received=1000))
    reply = {"job": 1, "pid": 2, "stdin_received": 0, "stdout_from": 999, "stderr_from": 0}
    with pytest.raises(ProtocolViolation, match="went back"):
        events(session, agent_frame(T.OPENED, reply, channel=channel))


# -- consumers that go away ------------------------------------------------------------------------


def test_hanging_up_ends_the_job_and_its_record() -> None:
    session, channel = running()
    session.send_eof(channel)
    frames(session)
    session.abandon(channel, hangup=True)
    [control] = frames(session)
    assert (control.type, unpack(control.payload)) == (T.CONTROL, {"hangup": True})
    assert events(session, agent_frame(T.EXIT, {"signal": 1}, channel=channel)) == []
    assert [f.type for f in frames(session)] == [T.CLOSE]


def test_output_of_an_abandoned_job_does_not_hold_up_its_end() -> None:
    session, channel = running()
    session.abandon(channel, hangup=True)
    frames(session)
    part = agent_frame(T.DATA, b"x" * 32_768, channel=channel, flow=STDOUT)
    sent, limit = 0, 65_536
    for _ in range(40):
        assert sent + 32_768 <= limit, "the agent is stuck"
        assert events(session, part) == []
        sent += 32_768
        limit = max([limit, *(f.credit[1] for f in frames(session))])


def test_a_job_that_was_given_up_while_it_was_started_is_ended_once_it_is_there() -> None:
    session = greeted()
    channel = session.open(m.ExecRequest(argv=[b"sleep"]))
    frames(session)
    session.abandon(channel, hangup=True)
    assert frames(session) == []
    assert events(session, agent_frame(T.OPENED, {"job": 1, "pid": 2}, channel=channel)) == []
    assert [f.type for f in frames(session)] == [T.CONTROL]


def test_an_attachment_that_was_given_up_leaves_the_job_alone() -> None:
    session = greeted()
    channel = session.open(m.Attach(job=1))
    frames(session)
    session.close(channel)
    assert events(session, agent_frame(T.OPENED, {"job": 1, "pid": 2}, channel=channel)) == []
    assert [f.type for f in frames(session)] == [T.CLOSE]


# -- the rest --------------------------------------------------------------------------------------


def test_controls_reach_a_running_job_only() -> None:
    session, channel = running()
    session.control(channel, {"signal": 2})
    session.control(channel, m.Resize(resize=m.TerminalSize(rows=24, cols=80)))
    assert [unpack(f.payload) for f in frames(session)] == [
        {"signal": 2},
        {"resize": {"rows": 24, "cols": 80}},
    ]
    events(session, agent_frame(T.EXIT, {"code": 0}, channel=channel))
    session.control(channel, {"signal": 2})
    assert frames(session) == []


def test_grants_for_no_output_are_refused() -> None:
    session, channel = running()
    with pytest.raises(UsageError):
        session.grant(channel, STDIN, 0, 70_000)


def test_a_request_that_does_not_fit_into_a_frame_says_so() -> None:
    session = greeted()
    with pytest.raises(UsageError, match="at most 65536 can be sent"):
        session.open(m.ExecRequest(argv=[b"x" * 65_536]))
    assert frames(session) == []


def test_channels_are_bounded_and_never_reused() -> None:
    session = greeted()
    numbers = [session.open(m.Sync()) for _ in range(MAX_CHANNELS)]
    with pytest.raises(ResourceError):
        session.open(m.Sync())
    events(session, agent_frame(T.OPENED, {}, channel=numbers[0]))
    assert session.open(m.Sync()) == max(numbers) + 1


def test_pings_are_answered_in_order() -> None:
    session = greeted()
    session.ping(b"a")
    session.ping(b"b")
    assert events(session, agent_frame(T.PONG, b"a")) == [Pong(b"a")]
    with pytest.raises(ProtocolViolation):
        events(session, agent_frame(T.PONG, b"a"))


def test_events_are_told_also_those_that_nobody_knows() -> None:
    value: dict[str, Any] = {"event": "from-the-future", "x": 1}
    assert events(greeted(), agent_frame(T.EVENT, value)) == [
        EventReceived(m.AgentEvent(event="from-the-future"))
    ]
