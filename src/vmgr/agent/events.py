"""What a session tells: things that the agent said, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmgr.agent import messages as m

__all__ = [
    "CreditReceived",
    "DataReceived",
    "EventReceived",
    "Exited",
    "FlowEnded",
    "HelloReceived",
    "Opened",
    "Pong",
    "RequestFailed",
    "SessionEvent",
]


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """The agent is there; `hello.version` 0: and speaks no version of ours."""

    hello: m.AgentHello


@dataclass(frozen=True, slots=True)
class Opened:
    """The request on `channel` was accepted."""

    channel: int
    reply: m.Message


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """ERROR: the request was refused, or the stream was ended by the agent."""

    channel: int
    failure: m.Failure


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Output of a job."""

    channel: int
    flow: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FlowEnded:
    """An output of a job has ended."""

    channel: int
    flow: int


@dataclass(frozen=True, slots=True)
class CreditReceived:
    """The job took `acked` bytes of stdin; up to `limit` may be sent."""

    channel: int
    acked: int
    limit: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The job has ended and all its output came before this."""

    channel: int
    result: m.JobExit


@dataclass(frozen=True, slots=True)
class EventReceived:
    """Something happened in the machine."""

    event: m.AgentEvent


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to the oldest ping."""

    payload: bytes


SessionEvent = (
    HelloReceived | Opened | RequestFailed | DataReceived | FlowEnded | CreditReceived | Exited
    | EventReceived | Pong
)  # fmt: skip
