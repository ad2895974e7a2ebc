"""The vectors that both halves of the protocol read (agent/vectors, written with the Rust half)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmgr.agent import messages as m
from vmgr.agent.events import HelloReceived, Pong
from vmgr.agent.flows import CreditError, InFlow, OutFlow
from vmgr.agent.frames import FrameBuffer, FrameType, ProtocolViolation, encode_frame
from vmgr.agent.session import Session

from .peer import ModelAgent, unpack

VECTORS = Path(__file__).parents[2] / "agent" / "vectors"


def load(name: str) -> dict[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = json.loads((VECTORS / name).read_text())
    return loaded


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


FRAMES = load("frames.json")
CREDIT = load("credit.json")
RESYNC = load("resync.json")
CALLS = load("calls.json")

REPLIES: dict[str, type[m.Message]] = {
    "hello-agent": m.AgentHello,
    "hello-agent-no-common-version": m.AgentHello,
    "opened-exec": m.Started,
    "opened-attach": m.Attached,
    "opened-empty": m.Empty,
    "opened-jobs": m.JobList,
    "opened-clock": m.Clocked,
    "opened-grow": m.Grown,
    "error-not-found": m.Failure,
    "error-taken-over": m.Failure,
    "exit-code": m.JobExit,
    "exit-signal": m.JobExit,
    "event-poweroff-begun": m.AgentEvent,
    "event-init-exited": m.AgentEvent,
    "event-oom": m.AgentEvent,
    "event-unknown-is-ignored": m.AgentEvent,
}
REQUESTS: dict[str, type[m.Request]] = {
    "open-exec": m.ExecRequest,
    "open-exec-tty": m.ExecRequest,
    "open-exec-unknown-key-is-ignored": m.ExecRequest,
    "open-attach": m.Attach,
    "open-jobs": m.Jobs,
    "open-forget": m.Forget,
    "open-signal": m.SignalJob,
    "open-clock": m.Clock,
    "open-configure": m.Configure,
    "open-grow": m.Grow,
    "open-poweroff": m.PowerOff,
    "open-sync": m.Sync,
}


def plain(value: Any) -> Any:
    """A vector's map, with its `{"$bin": hex}` as bytes."""
    if isinstance(value, dict):
        if "$bin" in value:
            return bytes.fromhex(value["$bin"])
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


def assert_agree(wanted: Any, seen: Any) -> None:
    """All that `wanted` says and we know of is what `seen` says."""
    if isinstance(wanted, dict) and isinstance(seen, dict):
        assert wanted.keys() & seen.keys() or not wanted
        for key in wanted.keys() & seen.keys():
            assert_agree(wanted[key], seen[key])
    elif isinstance(wanted, list):
        assert len(wanted) == len(seen)
        for left, right in zip(wanted, seen, strict=True):
            assert_agree(left, right)
    else:
        assert wanted == seen


@pytest.mark.parametrize("case", named(FRAMES["frames"]))
def test_frames_decode_and_encode(case: dict[str, Any]) -> None:
    raw = bytes.fromhex(case["hex"])
    buffer = FrameBuffer()
    buffer.feed(raw)
    frame = buffer.next()
    assert frame is not None
    assert (frame.type.name, frame.flow, frame.channel) == (
        case["type"], case["flow"], case["channel"],
    )  # fmt: skip
    assert len(buffer) == 0
    assert encode_frame(frame.type, frame.payload, channel=frame.channel, flow=frame.flow) == raw
    if "map" in case:
        assert unpack(frame.payload) == plain(case["map"])


@pytest.mark.parametrize(
    "case", named([c for c in FRAMES["frames"] if "map" in c and c["direction"] == "agent-to-host"])
)
def test_maps_from_the_agent_become_messages(case: dict[str, Any]) -> None:
    message = m.decode(bytes.fromhex(case["hex"])[12:], REPLIES[case["name"]])
    seen = msgspec.to_builtins(message, builtin_types=(bytes,))
    assert_agree(plain(case["map"]), seen)


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_requests_of_the_host_say_what_the_vectors_say(name: str) -> None:
    [case] = [c for c in FRAMES["frames"] if c["name"] == name]
    wanted = plain(case["map"])
    # Reading the vector as our own type and writing it again must lose nothing that we know.
    request = msgspec.convert(wanted, REQUESTS[name])
    written = unpack(m.encode(request))
    assert written["op"] == wanted["op"]
    assert_agree(wanted, written)


@pytest.mark.parametrize("case", named(FRAMES["invalid"]))
def test_invalid_frames_are_refused(case: dict[str, Any]) -> None:
    buffer = FrameBuffer()
    buffer.feed(bytes.fromhex(case["hex"]))
    with pytest.raises(ProtocolViolation):
        buffer.next()


@pytest.mark.parametrize(
    "case", named([c for c in FRAMES["invalid_maps"] if c["direction"] == "agent-to-host"])
)
def test_invalid_maps_are_refused(case: dict[str, Any]) -> None:
    buffer = FrameBuffer()
    buffer.feed(bytes.fromhex(case["hex"]))
    frame = buffer.next()
    assert frame is not None
    kind = {FrameType.OPENED: m.Started, FrameType.EXIT: m.JobExit, FrameType.ERROR: m.Failure}
    with pytest.raises(ProtocolViolation):
        m.decode(frame.payload, kind[frame.type])


@pytest.mark.parametrize("case", named(FRAMES["incomplete"]))
def test_beginnings_of_frames_wait(case: dict[str, Any]) -> None:
    buffer = FrameBuffer()
    buffer.feed(bytes.fromhex(case["hex"]))
    assert buffer.next() is None


@pytest.mark.parametrize("case", named(CREDIT["sequences"]))
def test_credit_sequences(case: dict[str, Any]) -> None:
    """On stdin we are the sender and judge the credit, on outputs the other way round."""
    start = case["start"]
    flow: InFlow | OutFlow = OutFlow(start) if case["flow"] == "stdin" else InFlow(start)
    for step in case["steps"]:
        try:
            if isinstance(flow, OutFlow):
                flow.send(step["send"]) if "send" in step else flow.credited(
                    step["acked"], step["limit"]
                )
            else:
                flow.take(step["send"]) if "send" in step else flow.grant(
                    step["acked"], step["limit"]
                )
        except (ProtocolViolation, CreditError):
            assert not step["ok"]
            return
        assert step["ok"]


@pytest.mark.parametrize("case", named(RESYNC["host"]))
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_what_comes_before_the_nonce_is_discarded(case: dict[str, Any], piece: int) -> None:
    nonce = bytes.fromhex(case["nonce"])
    session = Session("test", random_bytes=lambda size: nonce[:size])
    session.start([b"k" * 16], b"l" * 16)
    session.ping(b"abc")
    stream = bytes.fromhex(case["hex"])
    seen: list[str] = []
    for at in range(0, len(stream), piece):
        session.receive(stream[at : at + piece])
        while (event := session.next_event()) is not None:
            seen.append({HelloReceived: "HELLO", Pong: "PONG"}.get(type(event), "?"))
    assert seen == case["then"]


@pytest.mark.parametrize("case", named(RESYNC["agent"]))
def test_the_model_agent_agrees_with_the_vectors(case: dict[str, Any]) -> None:
    """What the other tests here play against must be what the Rust half does."""
    agent = ModelAgent(bytes.fromhex(case["key"]))
    agent.receive(bytes.fromhex(case["hex"]))
    hellos = [
        plain_hello
        for step in case["expect"]
        if step.get("frame", {}).get("type") == "HELLO"
        for plain_hello in [unpack(bytes.fromhex(step["frame"]["payload"]))]
    ]
    last_key = hellos[-1]["next_key"] if hellos else bytes.fromhex(case["key"])
    assert (agent.hellos, agent.key) == (len(hellos), last_key)


@pytest.mark.parametrize("vector", named(CALLS["events"]))
def test_a_call_is_an_event(vector: dict[str, Any]) -> None:
    event = m.decode(bytes.fromhex(vector["payload"]), m.AgentEvent)
    assert (event.event, event.call, event.uid) == ("call", vector["call"], vector["uid"])


@pytest.mark.parametrize("vector", named([v for v in CALLS["requests"] if v["ok"]]))
def test_what_is_said_of_calls_is_in_the_vectors(vector: dict[str, Any]) -> None:
    requests = (m.Calls(user="ann"), m.Calls(user=None), m.AnswerCall(call=7),
                m.RefuseCall(call=7, message="no"))  # fmt: skip
    assert unpack(bytes.fromhex(vector["payload"])) in [unpack(m.encode(r)) for r in requests]
