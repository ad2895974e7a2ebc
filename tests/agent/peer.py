"""A model of the agent, written from docs/agent-protocol.md alone, without I/O and without mercy.

It serves jobs that echo: what comes in on stdin goes out on stdout. It keeps what is not
acknowledged, searches all it reads for its marker and forgets its session when it finds it, as the
page demands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from vmgr.agent.frames import (
    STDIN,
    STDOUT,
    Frame,
    FrameBuffer,
    FrameType,
    ProtocolViolation,
    encode_credit,
    encode_frame,
)

KEEP = 262_144


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def unpack(payload: bytes) -> Any:
    return msgspec.msgpack.decode(payload)


def agent_frame(kind: FrameType, value: Any = b"", *, channel: int = 0, flow: int = 0) -> bytes:
    payload = value if isinstance(value, bytes) else pack(value)
    return encode_frame(kind, payload, channel=channel, flow=flow)


def hello_map(version: int = 1) -> dict[str, Any]:
    return {
        "version": version, "agent": "0", "boot_id": "b", "kernel": "k", "init": "agent",
        "uptime_ns": 1, "clock_ns": 2, "features": [], "jobs": [],
    }  # fmt: skip


@dataclass
class EchoJob:
    number: int
    received: int = 0
    """Of stdin."""
    ended: bool = False
    kept: bytes = b""
    """Output from `acked` on."""
    acked: int = 0
    channel: int | None = None
    # of the session
    sent: int = 0
    limit: int = 0
    eof_sent: bool = False
    stdin_limit: int = 0

    @property
    def made(self) -> int:
        return self.acked + len(self.kept)


@dataclass
class ModelAgent:
    key: bytes
    jobs: dict[int, EchoJob] = field(default_factory=dict)
    out: bytes = b""
    hellos: int = 0
    garbage: int = 0
    _held: bytes = b""
    _frames: FrameBuffer | None = None
    _greeted: bool = False

    def receive(self, data: bytes) -> None:
        """Take bytes; the marker may begin and end anywhere, and each hello changes it.

        What may be the marker's beginning is withheld from the frames until it is known not to be.
        """
        at = 0
        while at < len(data):
            if self._greeted and not self._held:
                # Quickly over all that cannot begin a marker; no hello comes now, so the key stays.
                found = data.find(self.key[:1], at)
                end = len(data) if found < 0 else found
                self._feed(data[at:end])
                at = end
            self._held += data[at : at + 1]
            at += 1
            if self._held == self.key:
                self._held = b""
                self._frames = FrameBuffer()
                self._greeted = False
                self.out = b""
                for job in self.jobs.values():
                    job.channel = None
            while self._held and not self.key.startswith(self._held):
                first, self._held = self._held[:1], self._held[1:]
                self._feed(first)

    def _feed(self, data: bytes) -> None:
        if self._frames is None:
            return
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                self._handle(frame)
        except ProtocolViolation:
            self.garbage += 1
            self._frames = None

    def _handle(self, frame: Frame) -> None:
        if not self._greeted:
            if frame.type is not FrameType.HELLO:
                raise ProtocolViolation("no hello")
            try:
                hello = unpack(frame.payload)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise ProtocolViolation("no msgpack") from None
            self._greeted = True
            self.hellos += 1
            self.key = hello["next_key"]
            self.out += hello["nonce"] + agent_frame(FrameType.HELLO, hello_map())
            return
        job = next((j for j in self.jobs.values() if j.channel == frame.channel), None)
        match frame.type:
            case FrameType.OPEN:
                self._open(unpack(frame.payload), frame.channel)
            case FrameType.DATA if job is not None:
                assert job.received + len(frame.payload) <= job.stdin_limit, "host beyond credit"
                job.received += len(frame.payload)
                job.kept += frame.payload
            case FrameType.EOF if job is not None:
                job.ended = True
            case FrameType.CREDIT if job is not None:
                acked, limit = frame.credit
                assert frame.flow == STDOUT
                assert job.acked <= acked <= job.sent
                assert job.limit <= limit <= acked + KEEP
                job.kept = job.kept[acked - job.acked :]
                job.acked, job.limit = acked, limit
            case FrameType.CLOSE if job is not None:
                job.channel = None
            case _:
                pass

    def _open(self, request: dict[str, Any], channel: int) -> None:
        if request["op"] == "exec":
            job = EchoJob(number=len(self.jobs) + 1)
            self.jobs[job.number] = job
            reply = {"job": job.number, "pid": 100 + job.number}
        else:
            job = self.jobs[request["job"]]
            job.acked, job.kept = (
                request["stdout_received"],
                job.kept[request["stdout_received"] - job.acked :],
            )
            reply = {
                "job": job.number, "pid": 100 + job.number, "stdin_received": job.received,
                "stdout_from": job.acked, "stderr_from": 0,
            }  # fmt: skip
        job.channel = channel
        job.sent = job.acked
        job.limit = job.acked + 65_536
        job.stdin_limit = job.received + 65_536
        job.eof_sent = False
        self.out += agent_frame(FrameType.OPENED, reply, channel=channel)

    def work(self, most: int) -> None:
        """Send up to `most` bytes of each job's output, and credit for its stdin."""
        for job in self.jobs.values():
            if job.channel is None:
                continue
            count = min(most, job.limit - job.sent, job.made - job.sent, 32_768)
            if count > 0:
                start = job.sent - job.acked
                part = job.kept[start : start + count]
                self.out += agent_frame(FrameType.DATA, part, channel=job.channel, flow=STDOUT)
                job.sent += count
            limit = job.received + max(0, KEEP - len(job.kept))
            if limit > job.stdin_limit:
                job.stdin_limit = limit
                self.out += encode_credit(job.channel, STDIN, job.received, limit)
            if job.ended and job.sent == job.made and not job.eof_sent:
                job.eof_sent = True
                self.out += agent_frame(FrameType.EOF, channel=job.channel, flow=STDOUT)
                self.out += agent_frame(FrameType.EXIT, {"code": 0}, channel=job.channel)
