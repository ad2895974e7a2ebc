from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmgr.api import streams as s
from vmgr.api.models import ErrorBody, ExecSpec, ExitResult
from vmgr.client.jobstream import Gap, JobStream, Output
from vmgr.errors import AgentError, ExecError, HelperUnavailableError

START = s.Start(spec=ExecSpec(argv=["cat"], stdin=True))


def sent(stream: JobStream) -> list[Any]:
    """What the stream wants sent: JSON decoded, binary as it is."""
    return [m if isinstance(m, bytes) else s.decode_from_client(m) for m in stream.take_outgoing()]


def told(stream: JobStream, message: s.FromHelper) -> list[Any]:
    return stream.receive(s.encode_message(message))


def started(**offsets: int) -> JobStream:
    stream = JobStream(START, "web")
    stream.connected()
    stream.take_outgoing()
    told(stream, s.Started(machine="web", job=7, **offsets))
    return stream


def test_a_command_from_start_to_exit() -> None:
    stream = JobStream(START, "web")
    stream.connected()
    assert sent(stream) == [START]
    assert told(stream, s.Progress(message="booting")) == [s.Progress(message="booting")]
    stream.write(b"early")
    assert sent(stream) == []  # nobody is there to take it yet
    assert told(stream, s.Started(machine="web", job=7)) == [s.Started(machine="web", job=7)]
    stream.end_input()
    assert sent(stream) == [b"\x00early", s.FlowEnd(flow=s.STDIN)]
    assert stream.receive(b"\x01out") == [Output(s.STDOUT, b"out")]
    assert stream.receive(b"\x02err") == [Output(s.STDERR, b"err")]
    told(stream, s.Exit(result=ExitResult(code=3)))
    assert stream.exit == ExitResult(code=3)
    assert (stream.machine, stream.job) == ("web", 7)


def test_credit_follows_what_was_taken_not_what_arrived() -> None:
    stream = started()
    for _ in range(2):
        stream.receive(b"\x01" + bytes(s.MAX_DATA))
    assert sent(stream) == []
    stream.taken(s.STDOUT, s.MAX_DATA)
    credit = s.Credit(flow=1, acked=s.MAX_DATA, limit=s.MAX_DATA + s.OUTPUT_WINDOW)
    assert sent(stream) == [credit]


def test_output_beyond_the_credit_is_a_breach() -> None:
    stream = started()
    for _ in range(2):
        stream.receive(b"\x01" + bytes(s.MAX_DATA))
    with pytest.raises(AgentError, match="more output than it was allowed"):
        stream.receive(b"\x01x")


def test_input_waits_for_credit_and_is_kept_until_it_is_acknowledged() -> None:
    stream = started()
    stream.write(bytes(s.INITIAL_CREDIT + 10))
    assert sum(len(m) - 1 for m in sent(stream)) == s.INITIAL_CREDIT
    assert stream.input_room == s.STDIN_WINDOW - s.INITIAL_CREDIT - 10
    told(stream, s.Credit(flow=0, acked=s.INITIAL_CREDIT, limit=10 * s.INITIAL_CREDIT))
    assert sent(stream) == [bytes(1 + 10)]
    assert stream.input_room == s.STDIN_WINDOW - 10


def test_messages_hold_no_more_than_max_data() -> None:
    stream = started()
    stream.write(bytes(s.MAX_DATA + 1))
    assert [len(m) for m in sent(stream)] == [s.MAX_DATA + 1, 2]


def test_more_input_than_room_is_the_callers_mistake() -> None:
    stream = started()
    with pytest.raises(ValueError, match="room"):
        stream.write(bytes(s.STDIN_WINDOW + 1))


def test_an_acknowledgement_of_what_was_never_sent_is_a_breach() -> None:
    with pytest.raises(HelperUnavailableError, match="never sent"):
        told(started(), s.Credit(flow=0, acked=1, limit=100_000))


def test_failed_is_raised_as_its_error() -> None:
    stream = JobStream(START, "web")
    stream.connected()
    body = ErrorBody(code="exec-failed", message="no such program", details={"exit_code": 127})
    with pytest.raises(ExecError) as caught:
        told(stream, s.Failed(error=body))
    assert caught.value.exit_code == 127


def test_a_connection_lost_before_the_start_cannot_be_taken_up() -> None:
    stream = JobStream(START, "web")
    stream.connected()
    assert not stream.can_attach
    with pytest.raises(HelperUnavailableError, match="before it had confirmed"):
        stream.disconnected()


def test_a_lost_connection_is_taken_up_where_it_stopped() -> None:
    stream = started()
    stream.write(b"0123456789")
    stream.end_input()
    stream.receive(b"\x01abc")
    stream.take_outgoing()
    stream.disconnected()
    stream.connected()
    assert sent(stream) == [s.Attach(stdin_sent=10, stdout_received=3, stderr_received=0)]
    told(stream, s.Started(machine="web", job=7, stdin_received=4, stdout_from=3))
    assert sent(stream) == [b"\x00456789", s.FlowEnd(flow=s.STDIN)]


def test_signals_and_the_last_size_wait_for_the_connection() -> None:
    stream = started()
    stream.disconnected()
    stream.connected()
    stream.take_outgoing()
    stream.resize(1, 1)
    stream.signal(2)
    stream.resize(50, 200)
    assert sent(stream) == []
    told(stream, s.Started(machine="web", job=7))
    assert sent(stream) == [s.Signal(signal=2), s.Resize(rows=50, cols=200)]


def test_dropped_output_is_told() -> None:
    stream = started()
    stream.receive(b"\x01abc")
    stream.disconnected()
    stream.connected()
    events = told(stream, s.Started(machine="web", job=7, stdout_from=1000))
    assert events[0] == Gap(s.STDOUT, 997)


def test_attaching_to_a_job_that_others_fed() -> None:
    stream = JobStream(s.Attach(), "web", 7)
    stream.connected()
    told(stream, s.Started(machine="web", job=7, stdin_received=500, stdout_from=200))
    stream.take_outgoing()
    stream.write(b"mine")
    assert sent(stream) == [b"\x00mine"]
    told(stream, s.Credit(flow=0, acked=504, limit=100_000))
    assert stream.input_room == s.STDIN_WINDOW


@pytest.mark.parametrize("message", [b"", b"\x00in", b"\x07?", "{}", '{"type":"done","result":1}'])
def test_messages_that_have_no_place(message: str | bytes) -> None:
    with pytest.raises(HelperUnavailableError):
        started().receive(message)


@pytest.mark.parametrize(
    "offsets", [{"stdin_received": 99}, {"stdout_from": 1}, {"stdin_received": 1}]
)
def test_offsets_that_cannot_be(offsets: dict[str, int]) -> None:
    stream = started()
    stream.write(b"0123456789")
    stream.receive(b"\x01abc")
    told(stream, s.Credit(flow=0, acked=5, limit=100_000))
    stream.disconnected()
    stream.connected()
    with pytest.raises(AgentError):
        told(stream, s.Started(machine="web", job=7, **{"stdout_from": 3, **offsets}))


class Machine:
    """The far end: a command that copies input to output, and forgets only what is acked."""

    def __init__(self) -> None:
        self.input = b""
        self.input_ended = False
        self.acked = 0
        self.limit = s.INITIAL_CREDIT
        self.sent = 0

    def attach(self, message: s.Attach) -> s.Started:
        assert message.stdout_received >= self.acked
        self.sent = message.stdout_received
        self.limit = self.sent + s.INITIAL_CREDIT
        return s.Started(
            machine="web", job=7, stdin_received=len(self.input), stdout_from=self.sent
        )

    def take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            assert message[0] == s.STDIN
            self.input += message[1:]
            return
        match s.decode_from_client(message):
            case s.Credit(flow=s.STDOUT, acked=acked, limit=limit):
                assert self.acked <= acked <= self.sent
                assert limit - acked <= s.OUTPUT_WINDOW
                self.acked, self.limit = acked, max(self.limit, limit)
            case s.FlowEnd(flow=s.STDIN):
                self.input_ended = True

    def give(self, count: int) -> bytes:
        end = min(self.sent + count, self.limit, len(self.input))
        data, self.sent = self.input[self.sent : end], max(end, self.sent)
        return data


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 90_000)),
        st.tuples(st.just("carry"), st.integers(1, 6)),
        st.tuples(st.just("give"), st.integers(1, s.MAX_DATA)),
        st.tuples(st.just("take"), st.integers(1, 90_000)),
        st.tuples(st.just("ack"), st.just(0)),
        st.tuples(st.just("cut"), st.just(0)),
    ),
    max_size=60,
)


class Cable:
    """A stream and a machine, with a connection between them that can be cut at any moment."""

    def __init__(self) -> None:
        self.machine, self.stream = Machine(), started()
        self.written = b""
        self.arrived = b""
        self.untaken = 0
        self.on_the_way: list[str | bytes] = []

    def write(self, count: int) -> None:
        offset = len(self.written)
        data = bytes((offset + i) * 7 & 0xFF for i in range(count))[: self.stream.input_room]
        self.written += data
        self.stream.write(data)

    def carry(self, count: int) -> None:
        self.on_the_way.extend(self.stream.take_outgoing())
        for message in self.on_the_way[:count]:
            self.machine.take(message)
        del self.on_the_way[:count]

    def give(self, count: int) -> None:
        if data := self.machine.give(count):
            for event in self.stream.receive(b"\x01" + data):
                assert isinstance(event, Output)
                self.arrived += event.data
                self.untaken += len(event.data)

    def take(self, count: int) -> None:
        count = min(count, self.untaken)
        self.untaken -= count
        self.stream.taken(s.STDOUT, count)

    def ack(self, _count: int) -> None:
        arrived = len(self.machine.input)
        told(self.stream, s.Credit(flow=0, acked=arrived, limit=arrived + 100_000))

    def cut(self, _count: int) -> None:
        self.on_the_way.clear()
        self.stream.disconnected()
        self.stream.connected()
        first, *_ = self.stream.take_outgoing()
        told(self.stream, self.machine.attach(msgspec.json.decode(first, type=s.Attach)))

    def finish(self) -> None:
        self.stream.end_input()
        for _ in range(400):
            self.carry(100)
            self.ack(0)
            self.give(s.MAX_DATA)
            self.take(self.untaken)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_whatever_is_cut_whenever_nothing_is_lost_or_doubled(steps: list[tuple[str, int]]) -> None:
    cable = Cable()
    for step, count in steps:
        getattr(cable, step)(count)
    cable.finish()
    assert cable.machine.input == cable.written
    assert cable.machine.input_ended
    assert cable.arrived == cable.written
