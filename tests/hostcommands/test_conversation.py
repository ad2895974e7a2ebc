"""The conversation with a machine's `host`, as a script of bytes and events; most of it hostile."""

from __future__ import annotations

import json
from collections.abc import Callable  # noqa: TC003 (hypothesis reads it)
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmgr.agent.frames import (
    STDERR,
    STDIN,
    STDOUT,
    FrameBuffer,
    FrameType,
    ProtocolViolation,
    encode_credit,
    encode_frame,
)
from vmgr.hostcommands.conversation import (
    CHANNEL,
    Asked,
    Conversation,
    Credit,
    Input,
    InputEnded,
    Resized,
    Signalled,
    Size,
)

VECTORS = json.loads((Path(__file__).parents[2] / "agent/vectors/calls.json").read_text())
T = FrameType


def frame(kind: FrameType, payload: Any = b"", *, flow: int = 0, channel: int = CHANNEL) -> bytes:
    data = payload if isinstance(payload, bytes) else msgspec.msgpack.encode(payload)
    return encode_frame(kind, data, channel=channel, flow=flow)


OPEN = frame(T.OPEN, {"verb": "run", "argv": [b"cat"]})


def said(conversation: Conversation) -> list[tuple[FrameType, int, bytes]]:
    frames = FrameBuffer()
    frames.feed(conversation.take_output())
    found = []
    while (one := frames.next()) is not None:
        found.append((one.type, one.flow, one.payload))
    return found


def running() -> Conversation:
    conversation = Conversation()
    assert list(conversation.receive(OPEN)) == [Asked(verb="run", argv=[b"cat"])]
    conversation.started()
    conversation.take_output()
    return conversation


def test_a_command_from_its_beginning_to_its_end() -> None:
    conversation = Conversation()
    events = list(conversation.receive(OPEN + frame(T.DATA, b"in", flow=STDIN)))
    assert events == [Asked(verb="run", argv=[b"cat"]), Input(b"in")]
    conversation.started()
    conversation.send(STDOUT, b"in")
    conversation.send(STDERR, b"oh")
    assert list(conversation.receive(frame(T.EOF, flow=STDIN))) == [InputEnded()]
    conversation.exited(code=3)
    kinds = [(kind, flow) for kind, flow, _ in said(conversation)]
    assert kinds == [(T.OPENED, 0), (T.DATA, STDOUT), (T.DATA, STDERR), (T.EXIT, 0)]
    assert conversation.over


def test_bytes_may_come_one_by_one() -> None:
    conversation = Conversation()
    whole = OPEN + frame(T.DATA, b"x", flow=STDIN) + frame(T.CONTROL, {"signal": 2})
    events = [e for at in range(len(whole)) for e in conversation.receive(whole[at : at + 1])]
    assert events == [Asked(verb="run", argv=[b"cat"]), Input(b"x"), Signalled(2)]


def test_a_terminal_is_resized() -> None:
    size = {"rows": 30, "cols": 100}
    conversation = Conversation()
    (asked,) = conversation.receive(frame(T.OPEN, {"verb": "run", "argv": [b"top"], "tty": size}))
    assert isinstance(asked, Asked)
    assert asked.tty == Size(rows=30, cols=100)
    resize = frame(T.CONTROL, {"resize": {"rows": 1, "cols": 2}})
    assert list(conversation.receive(resize)) == [Resized(Size(rows=1, cols=2))]


def test_output_waits_for_credit() -> None:
    conversation = running()
    sent = 0
    while room := conversation.room(STDOUT):
        conversation.send(STDOUT, bytes(room))
        sent += room
    assert sent == 65_536
    assert conversation.room(STDERR) > 0
    credit = encode_credit(CHANNEL, STDOUT, sent, sent + 100)
    assert list(conversation.receive(credit)) == [Credit()]
    assert conversation.room(STDOUT) == 100


def test_stdin_is_granted_as_it_is_taken() -> None:
    conversation = running()
    data = frame(T.DATA, bytes(32_768), flow=STDIN)
    list(conversation.receive(data * 2))
    conversation.took(65_536)
    ((kind, flow, _),) = said(conversation)
    assert (kind, flow) == (T.CREDIT, STDIN)
    list(conversation.receive(data))


@pytest.mark.parametrize("vector", VECTORS["opens"], ids=lambda v: v["name"])
def test_the_vectors_are_understood(vector: dict[str, Any]) -> None:
    (asked,) = Conversation().receive(bytes.fromhex(vector["hex"]))
    assert isinstance(asked, Asked)
    assert asked.verb == vector["verb"]
    assert [a.decode() for a in asked.argv] == vector["argv"]
    assert (asked.tty is not None) is vector["tty"]


HOSTILE_OPENS: list[Any] = [
    {}, {"verb": "run"}, {"verb": "run", "argv": []}, {"verb": "run", "argv": [b""]},
    {"verb": "format", "argv": [b"c"]}, {"verb": "run", "argv": [b"a\0b"]},
    {"verb": "run", "argv": [b"a"] * 1_025}, {"verb": "run", "argv": b"a"},
    {"verb": "run", "argv": [b"a"], "cwd": b"/" * 4_097},
    {"verb": "run", "argv": [b"a"], "cwd": b"/\0"},
    {"verb": "run", "argv": [b"a"], "tty": {"rows": 0, "cols": 1}},
    {"verb": "run", "argv": [b"a"], "tty": {"rows": 10**9, "cols": 1}},
    {"verb": "run", "argv": [b"a"], "term": "x" * 65}, {"verb": "paste", "argv": [b"a"]},
    {"verb": "copy", "argv": [b"a"]}, {"verb": "open", "argv": []},
    b"\x91" * 60_000, b"\xc1", b"",
]  # fmt: skip


@pytest.mark.parametrize("payload", HOSTILE_OPENS, ids=range(len(HOSTILE_OPENS)))
def test_what_is_no_request_ends_it(payload: Any) -> None:
    conversation = Conversation()
    with pytest.raises(ProtocolViolation):
        list(conversation.receive(frame(T.OPEN, payload)))
    assert conversation.over


@pytest.mark.parametrize(
    "data",
    [
        frame(T.DATA, b"x", flow=STDIN),  # before OPEN
        frame(T.HELLO, {}, channel=0),
        frame(T.OPEN, {"verb": "run", "argv": [b"a"]}, channel=2),
        b"\xff" * 64,
        encode_frame(T.OPEN, b"", channel=CHANNEL)[:-1] + b"\x01\0\0\0\0",
    ],
)
def test_what_is_no_beginning_ends_it(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        list(Conversation().receive(data))


@pytest.mark.parametrize(
    "data",
    [
        OPEN, frame(T.DATA, b"x", flow=STDOUT), frame(T.EOF, flow=STDOUT), frame(T.EXIT, {}),
        frame(T.CLOSE), frame(T.EOF, flow=STDIN) * 2, frame(T.DATA, bytes(32_768), flow=STDIN) * 3,
        encode_credit(CHANNEL, STDOUT, 1, 1), encode_credit(CHANNEL, STDOUT, 0, 2**60),
        encode_credit(CHANNEL, STDIN, 0, 65_536), frame(T.CONTROL, {"signal": 9}),
        frame(T.CONTROL, {"signal": -1}), frame(T.CONTROL, {"resize": {"rows": 0, "cols": 0}}),
        frame(T.CONTROL, {"signal": 2}) * 1_001, frame(T.DATA, flow=STDIN) * 1_001,
        encode_credit(CHANNEL, STDOUT, 0, 65_536) * 1_001,
    ],
    ids=range(16),
)  # fmt: skip
def test_what_may_not_be_said_ends_it(data: bytes) -> None:
    conversation = running()
    with pytest.raises(ProtocolViolation):
        list(conversation.receive(data))
    assert conversation.over


def test_after_the_last_word_nothing_is_heard() -> None:
    conversation = running()
    conversation.exited(signal=9)
    assert list(conversation.receive(frame(T.DATA, b"late", flow=STDIN))) == []
    conversation.failed("x", "twice")
    assert [kind for kind, _, _ in said(conversation)] == [T.EXIT]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=20), st.sampled_from([running, Conversation]))
def test_nonsense_is_a_violation_or_waits_for_more(
    parts: list[bytes], begin: Callable[[], Conversation]
) -> None:
    conversation = begin()
    try:
        for part in parts:
            list(conversation.receive(part))
    except ProtocolViolation:
        assert conversation.over


@settings(deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["verb", "argv", "cwd", "tty", "term", "rows", "cols", "signal", "resize"]),
        inner, max_size=5,
    ),
))  # fmt: skip
def test_any_map_is_a_request_or_a_violation(value: Any) -> None:
    for kind in (T.OPEN, T.CONTROL):
        conversation = Conversation() if kind is T.OPEN else running()
        try:
            events = list(conversation.receive(frame(kind, msgspec.msgpack.encode(value))))
        except ProtocolViolation:
            assert conversation.over
        else:
            assert all(isinstance(e, Asked | Signalled | Resized) for e in events)
