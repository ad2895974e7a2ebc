"""The msgpack maps inside frames, as typed structures.

What the agent sends is decoded with bounds: size by the frame, nesting and number of values by
`vmgr.agent.shape`, each text and list by its type. Unknown keys are ignored, so both sides may add
fields.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from vmgr.agent.frames import ProtocolViolation
from vmgr.agent.shape import check_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AgentEvent",
    "AgentHello",
    "AnswerCall",
    "Attach",
    "Attached",
    "Calls",
    "Clock",
    "Clocked",
    "Configure",
    "Connect",
    "Connected",
    "Dropped",
    "Empty",
    "ExecRequest",
    "Failure",
    "Forget",
    "Freeze",
    "Grow",
    "Grown",
    "HostHello",
    "JobExit",
    "JobList",
    "JobRecord",
    "Jobs",
    "Listening",
    "Mount",
    "Network",
    "Networked",
    "PortListener",
    "PowerOff",
    "Reading",
    "RefuseCall",
    "Request",
    "Resize",
    "Share",
    "SignalJob",
    "Started",
    "Sync",
    "TerminalSize",
    "Thaw",
    "Time",
    "Unmount",
    "Unshare",
    "WatchPorts",
    "decode",
    "encode",
    "listeners_of",
]

MAX_JOBS: Final = 256

Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Offset = Annotated[int, Meta(ge=0, le=2**62)]
"""Of a flow's byte; so far below 2**64 that no window beyond it overflows."""
Nanoseconds = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Short = Annotated[str, Meta(max_length=256)]
Long = Annotated[str, Meta(max_length=4096)]


class Message(Struct, frozen=True, kw_only=True):
    """Base of what the agent sends."""


class Dropped(Message, frozen=True):
    """Bytes of output that were dropped because nobody took them in time."""

    stdout: Natural = 0
    stderr: Natural = 0


class JobExit(Message, frozen=True):
    """How a job ended. Exactly one of `code` and `signal` is set."""

    code: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=127)] | None = None
    core: bool = False
    dropped: Dropped = Dropped()

    def __post_init__(self) -> None:
        if (self.code is None) is (self.signal is None):
            raise ValueError("an exit has either a code or a signal")


class JobRecord(Message, frozen=True):
    """A job that runs in the machine, or one that ended and was not collected yet."""

    job: Natural
    pid: Natural
    label: Long = ""
    argv: list[bytes] = field(default_factory=list)
    user: Short = ""
    tty: bool = False
    detached: bool = False
    private: bool = False
    """It was given secrets."""
    started_ns: Natural = 0
    """CLOCK_BOOTTIME."""
    attached: bool = False
    exit: JobExit | None = None


class AgentHello(Message, frozen=True):
    """The agent's half of the hello. `version` 0: none is common, and nothing else is there."""

    version: Natural
    agent: Short = ""
    boot_id: Short = ""
    kernel: Short = ""
    init: Long = ""
    uptime_ns: Natural = 0
    clock_ns: Natural = 0
    features: Annotated[list[Short], Meta(max_length=256)] = field(default_factory=list)
    jobs: Annotated[list[JobRecord], Meta(max_length=MAX_JOBS)] = field(default_factory=list)


class Failure(Message, frozen=True):
    """Payload of ERROR. `errno` is Linux's number where a system call was the cause."""

    code: Short
    message: Long = ""
    errno: Annotated[int, Meta(ge=0, le=4095)] | None = None


_LISTENER: Final = struct.Struct("<BHB")
MAX_LISTENERS: Final = 512

Listeners = Annotated[
    list[Annotated[bytes, Meta(min_length=8, max_length=20)]], Meta(max_length=MAX_LISTENERS)
]


class PortListener(NamedTuple):
    """A socket in the machine that waits for connections or datagrams."""

    protocol: Literal["tcp", "udp"]
    port: int
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    only6: bool
    """It is `::` and takes no IPv4."""

    @classmethod
    def read(cls, raw: bytes) -> PortListener | None:
        """As the agent writes it; None for what is none of ours."""
        number, port, flags = _LISTENER.unpack_from(raw)
        address = raw[_LISTENER.size :]
        if number not in _PROTOCOLS or not port or len(address) not in {4, 16}:
            return None
        return cls(_PROTOCOLS[number], port, ipaddress.ip_address(address), bool(flags & 1))


def listeners_of(raw: Sequence[bytes]) -> list[PortListener]:
    """What the agent says of who listens, as far as it makes sense."""
    return [found for one in raw if (found := PortListener.read(one)) is not None]


_PROTOCOLS: Final[dict[int, Literal["tcp", "udp"]]] = {6: "tcp", 17: "udp"}  # IANA's


class AgentEvent(Message, frozen=True):
    """Payload of EVENT."""

    event: Short
    result: JobExit | None = None
    count: Natural | None = None
    listening: Listeners | None = None
    call: Natural | None = None
    uid: Natural | None = None


class Empty(Message, frozen=True):
    """An answer that only says "done"."""


class Started(Message, frozen=True):
    """A job was started."""

    job: Natural
    pid: Natural


class Attached(Message, frozen=True):
    """A job's streams were taken over; where each goes on."""

    job: Natural
    pid: Natural
    stdin_received: Offset = 0
    stdout_from: Offset = 0
    stderr_from: Offset = 0


class JobList(Message, frozen=True):
    """All jobs."""

    # 256 that run and 64 that have ended.
    jobs: Annotated[list[JobRecord], Meta(max_length=320)] = field(default_factory=list)


class Clocked(Message, frozen=True):
    """How far the clock was moved, in nanoseconds."""

    stepped_ns: int = 0


class Reading(Message, frozen=True):
    """What the machine's clock says, and who keeps it."""

    realtime_ns: Nanoseconds
    synchronized: bool = False
    """A program of the machine's own keeps it."""
    pending_ns: Nanoseconds = 0
    """By how much it is still to be slewed."""


class Configured(Message, frozen=True):
    """The machine is as asked."""

    sshd: bool = False
    """With `renew`: it has an SSH server, which has no host keys now."""


class Networked(Message, frozen=True):
    """The network is as asked."""

    interface: Short = ""
    resolver: bool = False
    """Whether /etc/resolv.conf says what was asked; False where the machine keeps its own."""


class Listening(Message, frozen=True):
    """The sockets that wait now; changes come as events."""

    listening: Listeners = field(default_factory=list)


class Connected(Message, frozen=True):
    """A connection was made: to one of the machine's ports, or with somebody who called."""


class Grown(Message, frozen=True):
    """A file system's size now."""

    bytes: Natural


# -- from host to agent ----------------------------------------------------------------------------


class TerminalSize(Struct, frozen=True, kw_only=True):
    """In character cells."""

    rows: int
    cols: int


class HostHello(Struct, frozen=True, kw_only=True):
    """The host's half of the hello.

    `tail` means nothing and stays last: see `vmgr.agent.keys`.
    """

    versions: list[int]
    nonce: bytes
    host: str
    next_key: bytes
    tail: bytes = b"\0" * 16


class Resize(Struct, frozen=True, kw_only=True):
    """CONTROL: the terminal has a new size."""

    resize: TerminalSize


class Request(Struct, frozen=True, kw_only=True, tag_field="op"):
    """Base of the payloads of OPEN. `stream` ones keep their channel after OPENED."""

    reply: ClassVar[type[Message]] = Empty
    stream: ClassVar[bool] = False


class ExecRequest(Request, frozen=True, kw_only=True, tag="exec"):
    """Start a job; fields as the protocol page says. Paths, arguments and environment are bytes."""

    reply: ClassVar[type[Message]] = Started
    stream: ClassVar[bool] = True

    argv: list[bytes] = field(default_factory=list)
    env: list[bytes] = field(default_factory=list)
    cwd: bytes | None = None
    user: str = "root"
    tty: TerminalSize | None = None
    stdin: bool = False
    login: bool = False
    builtin: str | None = None
    detached: bool = False
    label: str = ""
    private: bool = False
    """Something in `env` is a secret."""
    secret_files: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Names and contents."""


class Attach(Request, frozen=True, kw_only=True, tag="attach"):
    """Take over a job's streams; offsets are what this consumer already has."""

    reply: ClassVar[type[Message]] = Attached
    stream: ClassVar[bool] = True

    job: int
    stdin_sent: int = 0
    stdout_received: int = 0
    stderr_received: int = 0


class Jobs(Request, frozen=True, kw_only=True, tag="jobs"):
    """List the jobs."""

    reply: ClassVar[type[Message]] = JobList


class Forget(Request, frozen=True, kw_only=True, tag="forget"):
    """Drop an ended job's record."""

    job: int


class SignalJob(Request, frozen=True, kw_only=True, tag="signal"):
    """Send a signal to a job's process group."""

    job: int
    signal: int


class Clock(Request, frozen=True, kw_only=True, tag="clock"):
    """Set the machine's clock."""

    reply: ClassVar[type[Message]] = Clocked

    realtime_ns: int


class Time(Request, frozen=True, kw_only=True, tag="time"):
    """Read the machine's clock, after beginning to slew it where that is asked."""

    reply: ClassVar[type[Message]] = Reading

    slew_ns: int | None = None


class Configure(Request, frozen=True, kw_only=True, tag="configure"):
    """What a fresh machine is told."""

    reply: ClassVar[type[Message]] = Configured

    hostname: str | None = None
    entropy: bytes | None = None
    machine_id: str | None = None
    realtime_ns: int | None = None
    renew: bool = False
    thaw: bool = False


class Freeze(Request, frozen=True, kw_only=True, tag="freeze"):
    """Hold every process but the agent, and write everything to the disks."""

    unsynced: bool = False
    """Leave what is in memory there."""


class Thaw(Request, frozen=True, kw_only=True, tag="thaw"):
    """Let processes that were held go on."""


class Network(Request, frozen=True, kw_only=True, tag="network"):
    """What the machine's one network device is to be. Addresses are packed."""

    reply: ClassVar[type[Message]] = Networked

    mac: bytes | None = None
    addresses: list[bytes] = field(default_factory=list)
    """Each with one more byte, the length of its prefix."""
    gateways: list[bytes] = field(default_factory=list)
    mtu: int | None = None
    resolvers: list[bytes] = field(default_factory=list)
    search: list[str] = field(default_factory=list)


class Share(Request, frozen=True, kw_only=True, tag="share"):
    """Mount a directory of the host; one that is mounted has a new server."""

    slot: int
    path: str
    key: bytes
    """What the stream to its server begins with."""
    user: str
    """Whom the person's files belong to in the machine."""
    read_only: bool = False


class Unshare(Request, frozen=True, kw_only=True, tag="unshare"):
    """Unmount it."""

    slot: int


class WatchPorts(Request, frozen=True, kw_only=True, tag="ports"):
    """Tell who listens in the machine, now and whenever it changes, until the session ends."""

    reply: ClassVar[type[Message]] = Listening


class Connect(Request, frozen=True, kw_only=True, tag="connect"):
    """Connect to a port of the machine, as a program in it would."""

    reply: ClassVar[type[Message]] = Connected
    stream: ClassVar[bool] = True

    addresses: list[bytes]
    """Packed; tried in this order."""
    port: int
    datagrams: bool = False


class Calls(Request, frozen=True, kw_only=True, tag="calls"):
    """Tell of programs in the machine that want something of the host; until it is said again."""

    user: str | None
    """Whose, beside root's; None: of nobody's any more."""


class AnswerCall(Request, frozen=True, kw_only=True, tag="answer"):
    """Take a call: the channel is the connection with the program."""

    reply: ClassVar[type[Message]] = Connected
    stream: ClassVar[bool] = True

    call: int


class RefuseCall(Request, frozen=True, kw_only=True, tag="refuse"):
    """Do not take it, and say why."""

    call: int
    message: str


class Grow(Request, frozen=True, kw_only=True, tag="grow"):
    """Grow the root file system to its disk."""

    reply: ClassVar[type[Message]] = Grown


class Mount(Request, frozen=True, kw_only=True, tag="mount"):
    """Mount the disk of that serial number; its file system grows to it unless it is only read."""

    reply: ClassVar[type[Message]] = Grown

    serial: str
    path: str
    read_only: bool = False


class Unmount(Request, frozen=True, kw_only=True, tag="unmount"):
    """Unmount it, so that it can be taken out."""

    serial: str
    path: str
    read_only: bool = False


class PowerOff(Request, frozen=True, kw_only=True, tag="poweroff"):
    """End the machine in an orderly way."""

    reboot: bool = False
    grace_ms: int


class Sync(Request, frozen=True, kw_only=True, tag="sync"):
    """Write everything to the disks."""


Control = Resize | dict[Literal["signal", "hangup", "detach"], Any]

_M = TypeVar("_M", bound=Message)
_encoder: Final = msgspec.msgpack.Encoder()
_decoders: dict[type[Message], msgspec.msgpack.Decoder[Any]] = {}


def encode(message: HostHello | Request | Control) -> bytes:
    """The payload of a frame to the agent; the caller checks its size."""
    return _encoder.encode(message)


def decode(payload: bytes, kind: type[_M]) -> _M:
    """Read a payload from the agent.

    Raises:
        ProtocolViolation: it is not a map of that kind, or beyond the bounds.
    """
    check_shape(payload)
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        message = decoder.decode(payload)
    # UnicodeDecodeError (a ValueError) comes from text that is not UTF-8.
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolViolation(f"a bad {kind.__name__} message ({error})") from None
    assert isinstance(message, kind)  # noqa: S101 (the decoder's promise, said to the type checker)
    return message
