"""Hypothesis as the agent: what it sends is an event or a violation, and costs bounded memory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vmgr.agent import messages as m
from vmgr.agent.events import DataReceived, HelloReceived, Opened, RequestFailed
from vmgr.agent.flows import OUTPUT_WINDOW
from vmgr.agent.frames import (
    MAX_PAYLOAD,
    STDOUT,
    FrameType,
    ProtocolViolation,
    encode_credit,
    encode_header,
)
from vmgr.agent.keys import FIRST_KEY, MemoryKeyStore

from .peer import EchoJob, ModelAgent, agent_frame, hello_map
from .test_keys import prepared
from .test_session import NONCE, T, greeted, running, started

if TYPE_CHECKING:
    from vmgr.agent.session import Session

_channels = st.integers(0, 5) | st.integers(0, 2**32 - 1)
_offsets = st.integers(0, 2**17) | st.integers(0, 2**64 - 1)
_maps: st.SearchStrategy[Any] = st.sampled_from(
    [
        {}, {"job": 1, "pid": 2}, {"code": 0}, {"signal": 9, "core": True}, {"code": "not-found"},
        {"job": 1, "pid": 2, "stdout_from": 2**62, "stderr_from": 3, "stdin_received": 2**62},
        {"event": "oom", "count": 3}, {"jobs": []}, {"bytes": 4}, hello_map(), {"version": 0},
        [1, 2], None, {"code": None, "signal": None}, {"job": 2**64 - 1, "pid": 0},
    ]
)  # fmt: skip
_frames = st.one_of(
    st.builds(
        lambda kind, value, channel, flow: agent_frame(kind, value, channel=channel, flow=flow),
        st.sampled_from(FrameType), _maps | st.binary(max_size=70), _channels, st.integers(0, 2),
    ),
    st.builds(encode_credit, _channels, st.integers(0, 2), _offsets, _offsets),
    st.builds(
        lambda size, channel, flow: agent_frame(T.DATA, bytes(size), channel=channel, flow=flow),
        st.integers(0, 32_768), st.integers(1, 5), st.integers(0, 2),
    ),
    st.builds(  # a header that lies about what follows
        lambda kind, channel, length: encode_header(kind, channel=channel, length=length),
        st.sampled_from(FrameType), _channels, st.integers(0, 2**32 - 1),
    ),
    st.binary(max_size=60),
)  # fmt: skip


def busy() -> Session:
    """Channels in every state: 1 runs, 2 has exited, 3 is opening, 4 is abandoned, 5 is closed."""
    session, _ = running()
    for _ in range(4):
        session.open(m.ExecRequest(argv=[b"x"], stdin=True))
    for number in (2, 4, 5):
        session.receive(agent_frame(T.OPENED, {"job": number, "pid": 2}, channel=number))
    session.receive(agent_frame(T.EXIT, {"code": 0}, channel=2))
    while session.next_event() is not None:
        pass
    session.abandon(4, hangup=True)
    session.close(5)
    session.ping(b"x")
    return session


@settings(max_examples=300)
@given(st.lists(_frames, max_size=12), st.booleans())
def test_a_hostile_agent_causes_events_or_a_violation(
    sent: list[bytes],
    at_once: bool,  # noqa: FBT001 (hypothesis draws it)
) -> None:
    session = busy()
    session.take_output()
    pieces = [b"".join(sent)] if at_once else sent
    with contextlib.suppress(ProtocolViolation):
        for piece in pieces:
            session.receive(piece)
            for _ in iter(session.next_event, None):
                pass
            assert len(session._buffer) <= MAX_PAYLOAD + 12
    answer = sum(map(len, session.take_output()))
    assert answer <= 200 * (len(sent) + 1), "the answer may not be larger than what it answers"


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_noise_before_the_hello(sent: list[bytes]) -> None:
    session = started()
    for piece in sent:
        session.receive(piece)
        assert session.next_event() is None
        assert len(session._buffer) < 16
    session.receive(NONCE + agent_frame(T.HELLO, hello_map()))
    assert isinstance(session.next_event(), HelloReceived)


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_noise_after_the_hello(sent: list[bytes]) -> None:
    session = greeted()
    with contextlib.suppress(ProtocolViolation):
        for piece in sent:
            session.receive(piece)
            while session.next_event() is not None:
                pass


class Resync(RuleBasedStateMachine):
    """A host, an echoing agent, and pipes that lose everything at any moment.

    The consumer sends a counted pattern on stdin, takes what comes back, and after each cut
    attaches with what it has. Every byte comes back once and in order, however the pipes are cut.
    """

    _size = st.integers(1, 100) | st.integers(1, 100_000) | st.just(1 << 20)
    PATTERN = bytes(range(251)) * 80_000

    def __init__(self) -> None:
        super().__init__()
        self.agent = ModelAgent(FIRST_KEY)
        self.store = MemoryKeyStore()
        self.job = 0
        self.received = b""
        self.sent = 0

    def _run(self, coroutine: Any) -> Any:
        """Step through a coroutine that never waits."""
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("it waited")

    @initialize()
    def begin(self) -> None:
        self.connect()
        for _ in range(3):
            self.exchange(1 << 20, 1, 1 << 20)
        assert self.opened

    @rule(to_agent=_size, to_host=_size)
    def cut(self, to_agent: int, to_host: int) -> None:
        """Some of what is under way still arrives; then the helper is killed, another connects."""
        self.deliver_to_agent(to_agent)
        self.deliver_to_host(to_host)
        self.connect()

    def connect(self) -> None:
        self.to_agent = b""
        self.agent.out = b""
        self.channel = 0
        self.opened = False
        self.acked = self.limit = 0
        self.session, self.key = self._run(prepared(self.store))
        self._collect()

    def open(self) -> None:
        if not self.agent.jobs:
            self.channel = self.session.open(m.ExecRequest(argv=[b"cat"], stdin=True))
        else:
            [job] = self.agent.jobs
            self.channel = self.session.open(
                m.Attach(job=job, stdin_sent=self.sent, stdout_received=len(self.received))
            )
        self._collect()

    def consume_and_send(self, size: int, window: int) -> None:
        size = min(size, self.session.stdin_room(self.channel))
        self.session.send_data(self.channel, self.PATTERN[self.sent : self.sent + size])
        self.sent = min(self.sent + size, len(self.PATTERN))
        self.acked = len(self.received)
        self.limit = max(self.limit, self.acked + window)
        self.session.grant(self.channel, STDOUT, self.acked, self.limit)
        self._collect()

    @rule(
        to_agent=_size, work=_size, to_host=_size,
        send=st.integers(1, 300_000), window=st.integers(0, OUTPUT_WINDOW),
    )  # fmt: skip
    def live(self, to_agent: int, work: int, to_host: int, send: int, window: int) -> None:
        self.exchange(to_agent, work, to_host)
        if self.opened:
            self.consume_and_send(send, window)

    def exchange(self, to_agent: int, work: int, to_host: int) -> None:
        self.deliver_to_agent(to_agent)
        self.agent.work(work)
        self.deliver_to_host(to_host)
        if self.session.ready and not self.channel:
            self.open()

    def deliver_to_agent(self, size: int) -> None:
        self.agent.receive(self.to_agent[:size])
        self.to_agent = self.to_agent[size:]

    def deliver_to_host(self, size: int) -> None:
        part, self.agent.out = self.agent.out[:size], self.agent.out[size:]
        self.session.receive(part)
        while (event := self.session.next_event()) is not None:
            match event:
                case HelloReceived():
                    self._run(self.store.confirm(self.key))
                case Opened(_, m.Attached() as reply):
                    assert reply.stdout_from == len(self.received)
                    self.sent = reply.stdin_received
                    self._begin(reply.stdout_from)
                case Opened():
                    self._begin(0)
                case DataReceived(_, flow, data):
                    assert flow == STDOUT
                    self.received += data
                case RequestFailed(_, failure):
                    raise AssertionError(failure)

    def _begin(self, start: int) -> None:
        self.opened = True
        self.acked, self.limit = start, start + 65_536

    def _collect(self) -> None:
        self.to_agent += b"".join(self.session.take_output())

    @invariant()
    def every_byte_once_and_in_order(self) -> None:
        assert self.received == self.PATTERN[: len(self.received)]

    @invariant()
    def nothing_piles_up(self) -> None:
        assert len(self.store.keys) <= 16
        for job in self.agent.jobs.values():
            assert isinstance(job, EchoJob)
            assert len(job.kept) <= OUTPUT_WINDOW + 1_048_576

    def teardown(self) -> None:
        """Nothing that happened keeps the stream from going on, and all of it comes back."""
        goal = len(self.received) + 100_000
        for _ in range(25):
            self.live(1 << 20, 32_768, 1 << 20, 50_000, OUTPUT_WINDOW)
            self.every_byte_once_and_in_order()
        assert len(self.received) >= goal


Resync.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestResync = Resync.TestCase


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (agent_frame(T.EVENT, {"event": "oom", "count": 1}), "a flood of events"),
        (agent_frame(T.DATA, channel=1, flow=1), "a flood of frames that say nothing"),
        (agent_frame(T.DATA, b"x", channel=5, flow=1), "a flood of frames that say nothing"),
        (agent_frame(T.EOF, channel=5, flow=2), "a flood of frames that say nothing"),
        (encode_credit(1, 0, 0, 65_536), "a flood of frames that say nothing"),
    ],
)
def test_a_flood_of_what_needs_no_credit_ends_the_session(sent: bytes, said: str) -> None:
    session = busy()

    def flood() -> None:
        for _ in range(60):
            session.receive(sent * 1_000)
            for _ in iter(session.next_event, None):
                pass

    with pytest.raises(ProtocolViolation, match=said):
        flood()
