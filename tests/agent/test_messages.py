from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.agent import messages as m
from vmgr.agent.frames import ProtocolViolation

from .peer import hello_map, pack, unpack

KINDS: list[type[m.Message]] = [
    m.AgentHello, m.Started, m.Attached, m.JobList, m.JobExit, m.Failure, m.AgentEvent, m.Clocked,
    m.Reading, m.Grown, m.Empty, m.Listening, m.Connected,
]  # fmt: skip


def test_a_request_is_a_map_with_its_operation_and_bytes_for_paths() -> None:
    request = m.ExecRequest(
        argv=[b"ls", b"\xff"], env=[b"A=b"], cwd=b"/tmp", tty=m.TerminalSize(rows=24, cols=80)
    )
    assert unpack(m.encode(request)) == {
        "op": "exec", "argv": [b"ls", b"\xff"], "env": [b"A=b"], "cwd": b"/tmp", "user": "root",
        "tty": {"rows": 24, "cols": 80}, "stdin": False, "login": False, "builtin": None,
        "detached": False, "label": "", "private": False, "secret_files": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "op"),
    [
        (m.Attach(job=1), "attach"), (m.Jobs(), "jobs"), (m.Forget(job=1), "forget"),
        (m.SignalJob(job=1, signal=2), "signal"), (m.Clock(realtime_ns=1), "clock"),
        (m.Configure(), "configure"), (m.Grow(), "grow"),
        (m.Mount(serial="s", path="/d"), "mount"), (m.Unmount(serial="s", path="/d"), "unmount"),
        (m.Freeze(), "freeze"), (m.Thaw(), "thaw"), (m.Network(), "network"),
        (m.PowerOff(grace_ms=1), "poweroff"),
        (m.Sync(), "sync"),
    ],
)  # fmt: skip
def test_operations_have_the_names_of_the_page(request_: m.Request, op: str) -> None:
    assert unpack(m.encode(request_))["op"] == op


def test_the_last_bytes_of_a_hello_mean_nothing() -> None:
    hello = m.encode(m.HostHello(versions=[1], nonce=b"n" * 16, host="0.1", next_key=b"k" * 16))
    assert b"k" * 16 in hello[:-16]
    assert hello.endswith(b"\0" * 16)


def test_unknown_keys_are_ignored_and_missing_ones_have_defaults() -> None:
    hello = m.decode(pack({"version": 1, "future": [1, {"a": None}]}), m.AgentHello)
    assert (hello.version, hello.jobs) == (1, [])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (m.AgentHello, {}),
        (m.AgentHello, {"version": "1"}),
        (m.AgentHello, {**hello_map(), "boot_id": "x" * 257}),
        (m.AgentHello, {**hello_map(), "jobs": [{"job": 1, "pid": 1}] * 257}),
        (m.JobExit, {}),
        (m.JobExit, {"code": 0, "signal": 9}),
        (m.JobExit, {"code": 256}),
        (m.JobExit, {"code": -1}),
        (m.Started, {"job": 1}),
        (m.Started, {"job": -1, "pid": 1}),
        (m.Started, {"job": 2**64 - 1, "pid": 1}),
        (m.Attached, {"job": 1, "pid": 1, "stdout_from": 2**62 + 1}),
        (m.Failure, {"code": "x", "message": "x" * 4097}),
        (m.Failure, {"code": "x", "errno": 1 << 40}),
        (m.Empty, []),
        (m.Empty, 1),
    ],
)
def test_values_beyond_their_bounds_are_violations(kind: type[m.Message], value: Any) -> None:
    with pytest.raises(ProtocolViolation, match=f"a bad {kind.__name__} message"):
        m.decode(pack(value), kind)


def test_text_must_be_utf8() -> None:
    payload = pack({"code": "abc"}).replace(b"abc", b"\xff\xfe\xfd")
    with pytest.raises(ProtocolViolation):
        m.decode(payload, m.Failure)


def test_nothing_may_follow_the_map() -> None:
    with pytest.raises(ProtocolViolation):
        m.decode(pack({"job": 1, "pid": 1}) + b"\xc0", m.Started)


@given(st.sampled_from(KINDS), st.binary(max_size=300))
def test_any_bytes_decode_or_are_a_violation(kind: type[m.Message], payload: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        m.decode(payload, kind)


_leaf = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9)
    | st.binary(max_size=9)
)  # fmt: skip
_any = _leaf | st.lists(_leaf, max_size=3) | st.dictionaries(st.text(max_size=4), _leaf, max_size=3)


@given(st.sampled_from(KINDS), st.data())
def test_maps_of_the_right_keys_with_any_values_decode_or_are_a_violation(
    kind: type[m.Message], data: st.DataObject
) -> None:
    names = [f.encode_name for f in msgspec.structs.fields(kind)] or ["x"]
    value = data.draw(st.dictionaries(st.sampled_from(names), _any))
    with contextlib.suppress(ProtocolViolation):
        assert isinstance(m.decode(pack(value), kind), kind)


def test_who_listens_is_read_as_far_as_it_makes_sense() -> None:
    raw = [
        bytes([6, 80, 0, 0, 127, 0, 0, 1]),
        bytes([17, 0x39, 0x30, 1, *[0] * 16]),
        bytes([6, 0, 0, 0, 127, 0, 0, 1]),  # no port
        bytes([1, 80, 0, 0, 127, 0, 0, 1]),  # no protocol of ours
        bytes([6, 80, 0, 0, 127, 0, 0, 1, 9]),  # no address
    ]
    one, two = m.listeners_of(raw)
    assert (one.protocol, one.port, str(one.address), one.only6) == ("tcp", 80, "127.0.0.1", False)
    assert (two.protocol, two.port, str(two.address), two.only6) == ("udp", 12_345, "::", True)


@pytest.mark.parametrize("listening", [[b"x" * 8] * 513, [b"x" * 7], [b"x" * 21], ["x"], 5])
def test_who_listens_is_bounded(listening: object) -> None:
    with pytest.raises(ProtocolViolation):
        m.decode(msgspec.msgpack.encode({"event": "ports", "listening": listening}), m.AgentEvent)
