"""Messages on the WebSockets of `/v1`.

Text messages are JSON with a `type`; binary messages are one byte naming the flow (0 stdin, 1
stdout, 2 stderr) followed by its data, at most `MAX_DATA` bytes of it. Offsets count a flow's bytes
from its beginning.

**Job streams** (exec, shell, attach, run, pack/unpack). Client first: `Start` (or `Attach`, or
`Run`). Then the helper: any number of `Progress`, then `Started`, then data both ways. The client
grants `Credit` for stdout and stderr *after it has taken the bytes*, the helper does so for stdin;
neither may send beyond `limit` (before the first Credit: `INITIAL_CREDIT` past where the stream
began). `Exit` ends it; `Failed` ends it at any time. A client that closes the socket hangs up the
command, unless it sent `Detach` or started it detached.

**Log and event streams**: the helper sends binary flow-1 data (logs) or JSON `Event`s, and closes.

**Image streams** (build, import): client first: the request body as JSON; then `Progress`…, `Done`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from vmgr.api.models import CreateMachine, ErrorBody, ExecSpec, ExitResult

__all__ = [
    "INITIAL_CREDIT",
    "MAX_DATA",
    "OUTPUT_WINDOW",
    "STDERR",
    "STDIN",
    "STDIN_WINDOW",
    "STDOUT",
    "Attach",
    "Credit",
    "Detach",
    "Done",
    "Exit",
    "Failed",
    "FlowEnd",
    "FromClient",
    "FromHelper",
    "Progress",
    "Resize",
    "Run",
    "Signal",
    "Start",
    "Started",
    "decode_from_client",
    "decode_from_helper",
    "encode_message",
]

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
MAX_DATA: Final = 32_768
INITIAL_CREDIT: Final = 65_536
OUTPUT_WINDOW: Final = 262_144
STDIN_WINDOW: Final = 1_048_576


class Start(Struct, frozen=True, kw_only=True, tag_field="type", tag="start"):
    """Start a command in the machine that the URL names."""

    spec: ExecSpec


class Attach(Struct, frozen=True, kw_only=True, tag_field="type", tag="attach"):
    """Take over the streams of the job that the URL names; offsets are what this client has."""

    stdin_sent: int = 0
    stdout_received: int = 0
    stderr_received: int = 0


class Run(Struct, frozen=True, kw_only=True, tag_field="type", tag="run"):
    """Create an ephemeral machine, run a command in it, remove the machine."""

    machine: CreateMachine
    spec: ExecSpec


class Credit(Struct, frozen=True, kw_only=True, tag_field="type", tag="credit"):
    """`acked` bytes of the flow are taken for good; the sender may send up to `limit`."""

    flow: int
    acked: int
    limit: int


class FlowEnd(Struct, frozen=True, kw_only=True, tag_field="type", tag="eof"):
    """The flow has ended."""

    flow: int


class Signal(Struct, frozen=True, kw_only=True, tag_field="type", tag="signal"):
    """Send a signal to the command's process group."""

    signal: int


class Resize(Struct, frozen=True, kw_only=True, tag_field="type", tag="resize"):
    """The terminal has a new size."""

    rows: int
    cols: int


class Detach(Struct, frozen=True, kw_only=True, tag_field="type", tag="detach"):
    """Let the command go on without this client."""


class Progress(Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"):
    """What is being done before the command runs, or while an image is made."""

    message: str
    fraction: float | None = None
    """0 to 1; None: not known."""


class Started(Struct, frozen=True, kw_only=True, tag_field="type", tag="started"):
    """The command runs. Offsets matter after an attach: where each flow goes on."""

    machine: str
    job: int
    stdin_received: int = 0
    stdout_from: int = 0
    stderr_from: int = 0


class Exit(Struct, frozen=True, kw_only=True, tag_field="type", tag="exit"):
    """The command has ended and all its output has been sent."""

    result: ExitResult


class Failed(Struct, frozen=True, kw_only=True, tag_field="type", tag="failed"):
    """It could not be done, or no longer."""

    error: ErrorBody


class Done(Struct, frozen=True, kw_only=True, tag_field="type", tag="done"):
    """The work is done; `result` is the operation's answer body."""

    result: Any


FromClient = Start | Attach | Run | Credit | FlowEnd | Signal | Resize | Detach
FromHelper = Progress | Started | Credit | FlowEnd | Exit | Failed | Done

_encoder = msgspec.json.Encoder()
_from_client = msgspec.json.Decoder(FromClient)
_from_helper = msgspec.json.Decoder(FromHelper)


def encode_message(message: FromClient | FromHelper) -> str:
    """The text of one message."""
    return _encoder.encode(message).decode()


def decode_from_client(text: str | bytes) -> FromClient:
    """Read a client's message; `msgspec.ValidationError`/`DecodeError` when it is none."""
    message: FromClient = _from_client.decode(text)
    return message


def decode_from_helper(text: str | bytes) -> FromHelper:
    """Read a helper's message; `msgspec.ValidationError`/`DecodeError` when it is none."""
    message: FromHelper = _from_helper.decode(text)
    return message
