"""The channel against an agent that does what the real one never would (that one: test_real.py)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from vmgr.agent import messages as m
from vmgr.agent.channel import AgentChannel
from vmgr.agent.flows import CreditError
from vmgr.agent.frames import STDIN, STDOUT, FrameType, encode_credit
from vmgr.agent.keys import FIRST_KEY, MemoryKeyStore
from vmgr.agent.wire import HIGH_WATER, MAX_QUEUED
from vmgr.errors import AgentError, ExecError, StateError, UsageError

from .conftest import LOGGER, Recorder, Script, Scripted
from .peer import agent_frame, unpack

if TYPE_CHECKING:
    from pathlib import Path

T = FrameType
CAT = m.ExecRequest(argv=[b"cat"], stdin=True)


async def start(channel: AgentChannel, script: Script, sink: Recorder) -> int:
    """Start a job; gives its channel's number."""
    answer, job = await asyncio.gather(script.started(), channel.exec(CAT, sink))
    assert sink.job is job
    return answer


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- connecting ------------------------------------------------------------------------------------


async def test_a_vmm_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as caught:
        await AgentChannel.connect(
            tmp_path / "agent.sock", MemoryKeyStore(), machine="box", host_version="1",
            on_event=lambda _: None, logger=LOGGER,
        )  # fmt: skip
    assert caught.value.message == "the VMM of box cannot be reached: No such file or directory"


async def test_the_next_key_is_stored_before_the_hello_is_sent(scripted: Scripted) -> None:
    class Broken(MemoryKeyStore):
        async def store_next(self, key: bytes) -> None:  # noqa: ARG002 (the protocol's name)
            raise StateError("the disk is full")

    with pytest.raises(StateError):
        await scripted(keys=Broken(), greet=False)
    keys = MemoryKeyStore()
    channel, script = await scripted(keys=keys, greet=False)
    hello = unpack((await script.frame()).payload)
    assert keys.keys == [FIRST_KEY, hello["next_key"]]
    await script.send(hello["nonce"], agent_frame(T.HELLO, {"version": 1}))
    await channel.hello()
    await channel.aclose()
    assert keys.keys == [hello["next_key"]]


async def test_requests_wait_until_one_key_is_right(scripted: Scripted) -> None:
    release = asyncio.Event()

    class Slow(MemoryKeyStore):
        async def confirm(self, key: bytes) -> None:
            await release.wait()
            await super().confirm(key)

    channel, script = await scripted(keys=Slow())
    asked = asyncio.create_task(channel.sync())
    received = asyncio.create_task(script.request())
    await turns()
    assert not received.done()
    release.set()
    number, _ = await received
    await script.send(agent_frame(T.OPENED, {}, channel=number))
    await asked


async def test_a_key_that_cannot_be_confirmed_does_not_keep_the_machine_away(
    scripted: Scripted,
) -> None:
    class Broken(MemoryKeyStore):
        async def confirm(self, key: bytes) -> None:  # noqa: ARG002 (the protocol's name)
            raise StateError("the disk is full")

    channel, script = await scripted(keys=Broken())
    await asyncio.gather(channel.exec(CAT, Recorder()), script.started())


async def test_an_agent_without_a_common_version(scripted: Scripted) -> None:
    channel, script = await scripted(greet=False)
    await script.greet({"version": 0, "agent": "9.0"})
    with pytest.raises(
        AgentError, match=r"lost the agent of box: it is of version 9\.0 and shares no"
    ):
        await channel.hello()


# -- requests --------------------------------------------------------------------------------------


async def test_requests_have_a_deadline(scripted: Scripted) -> None:
    channel, _ = await scripted(deadline=0.01)
    with pytest.raises(AgentError, match=r"the agent of box did not answer within 0\.01 s"):
        await channel.sync()
    with pytest.raises(AgentError, match="did not answer"):
        await channel.ping()
    assert not channel.closed


async def test_a_job_that_is_started_too_late_is_ended(scripted: Scripted) -> None:
    channel, script = await scripted(deadline=0.01)
    sink = Recorder()
    with pytest.raises(AgentError, match="did not answer"):
        await channel.exec(CAT, sink)
    await script.started()
    control = await script.frame()
    assert (control.type, unpack(control.payload)) == (T.CONTROL, {"hangup": True})
    assert sink.log == []


async def test_cancelling_an_exec_ends_the_job(scripted: Scripted) -> None:
    channel, script = await scripted()
    sink = Recorder()
    task = asyncio.create_task(channel.exec(CAT, sink))
    number, _ = await script.request()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await script.send(agent_frame(T.OPENED, {"job": 1, "pid": 2}, channel=number))
    assert (await script.frame()).type is T.CONTROL
    await script.send(agent_frame(T.EXIT, {"signal": 1}, channel=number))
    assert (await script.frame()).type is T.CLOSE
    assert sink.log == []


async def test_refusals_are_raised_where_the_request_was_made(scripted: Scripted) -> None:
    channel, script = await scripted()
    task = asyncio.create_task(channel.exec(CAT, Recorder()))
    number, _ = await script.request()
    await script.send(agent_frame(T.ERROR, {"code": "not-found", "errno": 2}, channel=number))
    with pytest.raises(ExecError, match="the command cat was not found in box"):
        await task


@pytest.mark.parametrize(
    "request_",
    [
        m.ExecRequest(),
        m.ExecRequest(argv=[b"a\0b"]),
        m.ExecRequest(argv=[b"a"], env=[b"NOVALUE"]),
        m.ExecRequest(argv=[b"a"], env=[b"=x"]),
        m.ExecRequest(argv=[b"a"], cwd=b"/\0"),
        m.ExecRequest(argv=[b"a"], label="x" * 257),
        m.ExecRequest(argv=[b"a"] * 4097),
        m.ExecRequest(argv=[b"a" * 65_536]),
    ],
)
async def test_requests_that_cannot_be_asked(scripted: Scripted, request_: m.ExecRequest) -> None:
    channel, _ = await scripted()
    with pytest.raises(UsageError):
        await channel.exec(request_, Recorder())
    assert not channel.closed


async def test_events_of_the_machine_are_passed_on(scripted: Scripted) -> None:
    seen: asyncio.Queue[m.AgentEvent] = asyncio.Queue()
    _, script = await scripted(on_event=seen.put_nowait)
    await script.send(agent_frame(T.EVENT, {"event": "oom", "count": 2}))
    assert await seen.get() == m.AgentEvent(event="oom", count=2)


# -- streams ---------------------------------------------------------------------------------------


async def test_a_sink_hears_of_its_job_before_its_output(scripted: Scripted) -> None:
    channel, script = await scripted()
    sink = Recorder()
    task = asyncio.create_task(channel.exec(CAT, sink))
    number, _ = await script.request()
    await script.send(
        agent_frame(T.OPENED, {"job": 7, "pid": 2}, channel=number),
        agent_frame(T.DATA, b"hi", channel=number, flow=STDOUT),
        agent_frame(T.EOF, channel=number, flow=STDOUT),
        agent_frame(T.EXIT, {"code": 0}, channel=number),
    )
    job = await task
    await sink.ended.wait()
    assert sink.log == [("started", 7), ("data", 1, 2), ("eof", 1), ("exit",)]
    job.close()
    assert (await script.frame()).type is T.CLOSE


async def test_stdin_goes_no_further_than_its_credit(scripted: Scripted) -> None:
    channel, script = await scripted()
    sink = Recorder()
    number = await start(channel, script, sink)
    assert sink.job is not None
    with pytest.raises(CreditError):
        await sink.job.send_stdin(b"x" * 65_537)
    frames = [await script.frame() for _ in range(2)]
    assert [len(f.payload) for f in frames] == [32_768, 32_768]
    await script.send(encode_credit(number, STDIN, 65_536, 65_537))
    await sink.until(lambda: ("credit", 65_536, 65_537) in sink.log)
    await sink.job.send_stdin(b"y")
    sink.job.close_stdin()
    assert (await script.frame()).payload == b"y"
    assert (await script.frame()).type is T.EOF


async def test_a_hung_up_job_is_not_heard_of_again(scripted: Scripted) -> None:
    channel, script = await scripted()
    sink = Recorder()
    number = await start(channel, script, sink)
    assert sink.job is not None
    sink.job.hangup()
    assert (await script.frame()).type is T.CONTROL
    await script.send(
        agent_frame(T.DATA, b"x", channel=number, flow=STDOUT),
        agent_frame(T.EXIT, {"signal": 1}, channel=number),
    )
    assert (await script.frame()).type is T.CLOSE
    assert sink.log == [("started", 1)]


async def test_a_job_that_another_took_over_fails(scripted: Scripted) -> None:
    channel, script = await scripted()
    sink = Recorder()
    number = await start(channel, script, sink)
    await script.send(agent_frame(T.ERROR, {"code": "taken-over"}, channel=number))
    await sink.ended.wait()
    assert sink.error is not None
    assert sink.error.message == "another client has taken over the command"
    assert not channel.closed


# -- the end ---------------------------------------------------------------------------------------


async def test_the_end_is_told_to_everybody_once(scripted: Scripted) -> None:
    channel, script = await scripted()
    sinks = [Recorder(), Recorder()]
    for sink in sinks:
        await start(channel, script, sink)
    waiting = asyncio.create_task(channel.sync())
    pinging = asyncio.create_task(channel.ping())
    await script.request()
    script.sock.close()
    for task in (waiting, pinging):
        with pytest.raises(
            AgentError, match="lost the agent of box: the VMM closed the connection"
        ):
            await task
    for sink in sinks:
        await sink.ended.wait()
        assert isinstance(sink.error, AgentError)
        assert sink.log[-1] == ("failed",)
    channel.close()
    assert (await channel.wait_closed()).message.endswith("the VMM closed the connection")
    with pytest.raises(AgentError):
        await channel.sync()
    assert sinks[0].job is not None
    with pytest.raises(AgentError):
        await sinks[0].job.send_stdin(b"late")
    sinks[0].job.signal(2)
    sinks[0].job.close()
    assert [len(s.log) for s in sinks] == [2, 2]


async def test_a_violation_ends_the_channel_with_its_reason(scripted: Scripted) -> None:
    channel, script = await scripted()
    sink = Recorder()
    await start(channel, script, sink)
    await script.send(b"\xff" * 12)
    await sink.ended.wait()
    reason = (await channel.wait_closed()).message
    assert reason == (
        "lost the agent of box: it broke the protocol: a frame of 4294967295 bytes, above 65536"
    )
    assert sink.error is not None
    assert sink.error.message == reason


async def test_no_fd_is_left(scripted: Scripted) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (counting)
    for _ in range(3):
        channel, script = await scripted()
        await channel.aclose()
        script.sock.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 (counting)


async def test_a_sink_may_close_the_channel(scripted: Scripted) -> None:
    channel, script = await scripted()

    class Closing(Recorder):
        def data(self, flow: int, data: bytes) -> None:
            super().data(flow, data)
            channel.close()

    sink = Closing()
    number = await start(channel, script, sink)
    await script.send(*[agent_frame(T.DATA, b"x", channel=number, flow=STDOUT)] * 10)
    await sink.ended.wait()
    assert [entry[0] for entry in sink.log] == ["started", "data", "failed"]


# -- hostile machines ------------------------------------------------------------------------------


async def test_stdin_waits_for_a_machine_that_does_not_read(scripted: Scripted) -> None:
    channel, script = await scripted()
    sink = Recorder()
    number = await start(channel, script, sink)
    await script.send(encode_credit(number, STDIN, 0, 1_048_576))
    await sink.until(lambda: len(sink.log) == 2)
    assert sink.job is not None
    sending = asyncio.create_task(sink.job.send_stdin(b"x" * 1_048_576))
    await turns(200)
    assert not sending.done()
    assert channel._wire.queued <= HIGH_WATER + 32_768 + 12
    got = 0
    while got < 1_048_576:
        got += len((await script.frame()).payload)
    await sending


async def test_small_messages_to_a_machine_that_does_not_read_end_the_channel(
    scripted: Scripted,
) -> None:
    channel, script = await scripted()
    sink = Recorder()
    await start(channel, script, sink)
    assert sink.job is not None
    for _ in range(2 * MAX_QUEUED // 20):
        sink.job.signal(28)
        if channel.closed:
            break
    assert sink.error is not None
    assert sink.error.message == "lost the agent of box: it does not read what is sent to it"
    assert channel._wire.queued == 0


async def test_a_flood_leaves_the_loop_to_others(scripted: Scripted) -> None:
    """Many tiny frames in few reads: others get a turn every so many of them."""
    channel, script = await scripted()
    sink = Recorder()
    number = await start(channel, script, sink)
    count = 8_000
    await script.send(*[agent_frame(T.DATA, b"x", channel=number, flow=STDOUT)] * count)
    longest = seen = 0
    while seen < count:
        await asyncio.sleep(0)
        now = len(sink.received[STDOUT])
        longest = max(longest, now - seen)
        seen = now
    assert longest <= 128


async def test_a_paused_reader_goes_on(scripted: Scripted) -> None:
    """After a flood the channel still answers."""
    channel, script = await scripted()
    await script.send(*[agent_frame(T.EVENT, {"event": "oom"})] * 900)
    task = asyncio.create_task(channel.sync())
    number, _ = await script.request()
    await script.send(agent_frame(T.OPENED, {}, channel=number))
    await task


# -- run -------------------------------------------------------------------------------------------


async def test_run_keeps_the_last_bytes_and_grants_what_it_took(scripted: Scripted) -> None:
    channel, script = await scripted()
    task = asyncio.create_task(channel.run([b"x"], limit=1_000))
    number = await script.started()
    sent, limit = 0, 65_536
    while sent < 1_000_000:
        while sent + 10_000 > limit:
            frame = await script.frame()
            assert frame.type is T.CREDIT
            limit = frame.credit[1]
        part = bytes([sent // 10_000]) * 10_000
        await script.send(agent_frame(T.DATA, part, channel=number, flow=STDOUT))
        sent += 10_000
    await script.send(agent_frame(T.EXIT, {"code": 4}, channel=number))
    done = await task
    assert (done.exit.code, done.ok) == (4, False)
    assert done.stdout == bytes([99]) * 1_000


async def test_run_hangs_up_at_its_deadline(scripted: Scripted) -> None:
    channel, script = await scripted()
    task = asyncio.create_task(channel.run([b"sleep"], deadline=0.05))
    await script.started()
    with pytest.raises(TimeoutError):
        await task
    frame = await script.frame()
    assert (frame.type, unpack(frame.payload)) == (T.CONTROL, {"hangup": True})


async def test_run_fails_with_the_channel(scripted: Scripted) -> None:
    channel, script = await scripted()
    task = asyncio.create_task(channel.run([b"sleep"], stdin=b"x" * 100_000))
    await script.started()
    script.sock.close()
    with pytest.raises(AgentError):
        await task
