"""The bodies of requests and answers.

One set of types serves the helper, both clients and the OpenAPI document. Sizes are bytes, times
are seconds unless the name says otherwise, wall-clock times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from vmgr.api.base import Model
from vmgr.api.clock import ClockInfo
from vmgr.api.hostcommands import HostCommands
from vmgr.api.secrets import SecretInfo, SecretUse, SetSecret
from vmgr.api.shares import Share  # noqa: TC001 (msgspec resolves annotations at run time)
from vmgr.api.volumes import AttachVolume, VolumeUse  # noqa: TC001 (msgspec resolves annotations)

__all__ = [
    "Check",
    "ClockInfo",
    "ConfigEntry",
    "CreateMachine",
    "Denied",
    "DoctorReport",
    "Error",
    "ErrorBody",
    "Event",
    "ExecSpec",
    "ExitResult",
    "ForkMachine",
    "ForkedMachine",
    "HelperStatus",
    "HelperStop",
    "ImageBuild",
    "ImageImport",
    "ImageInfo",
    "ImageRemoved",
    "JobInfo",
    "JobSignal",
    "MachineInfo",
    "MachineRemoved",
    "MachineStatus",
    "MachinesAtStop",
    "Model",
    "NetworkAccess",
    "NetworkChange",
    "NetworkInfo",
    "PortForward",
    "SandboxLevel",
    "SecretInfo",
    "SecretUse",
    "SetConfig",
    "SetSecret",
    "SshServer",
    "StopMachine",
    "StopReport",
    "StopStep",
    "TerminalSize",
    "Version",
    "VmmInfo",
]

MACHINE_NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
SandboxLevel = Literal["filter", "namespaces", "full"]
"""How well a process is locked in, weakest first; see `vmgr.sandbox`."""
NetworkAccess = Literal["full", "internet", "none"]
MachineStatus = Literal[
    "creating", "stopped", "starting", "running", "stopping", "removing",
    "suspending", "suspended", "restoring",
]  # fmt: skip
StartedFrom = Literal["boot", "template", "suspended", "fork", "snapshot"]


class ErrorBody(Model, frozen=True, kw_only=True):
    """Why a request failed; see `vmgr.errors`."""

    code: str
    message: str
    next_step: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Error(Model, frozen=True, kw_only=True):
    """The body of every answer with a status of 400 or more."""

    error: ErrorBody


class Version(Model, frozen=True, kw_only=True):
    """Versions of the helper and of what it drives."""

    version: str
    api: str
    agent_protocol: int
    python: str
    qemu: str | None


class HelperStatus(Model, frozen=True, kw_only=True):
    """The helper as it is now."""

    pid: int
    version: str
    started_at: float
    uptime: float
    socket: str
    rss_bytes: int
    machines_running: int
    machines_total: int
    accelerator: str
    accelerator_reason: str
    crash_report: str | None = None
    """A crash report that nobody has been told of yet."""
    managed: bool = False
    """systemd started it, and starts the next one."""


class SshServer(Model, frozen=True, kw_only=True):
    """The SSH server that leads to the machines; it listens on this computer's loopback."""

    pid: int
    start_time: int
    """Of its process, in clock ticks after the host's boot: a pid alone may be another's by now."""
    version: str
    port: int
    config: str
    """The file for OpenSSH's client, to be included in ~/.ssh/config."""


MachinesAtStop = Literal["keep", "stop", "session-end"]


class HelperStop(Model, frozen=True, kw_only=True):
    """How the helper should stop."""

    machines: MachinesAtStop = "keep"
    """What becomes of the machines; `session-end`: what the setting `shutdown.action` says."""


class VmmInfo(Model, frozen=True, kw_only=True):
    """The process that runs a machine."""

    pid: int
    accelerator: str
    qemu: str
    machine_type: str
    sandbox: SandboxLevel | None
    """How well it is locked in; None: an older vmgr started it."""


class CreateMachine(Model, frozen=True, kw_only=True):
    """What a new machine is to be."""

    name: str | None = None
    """None: a name is made up."""
    image: str | None = None
    """An image's name or a prefix of its digest; None: the configured default."""
    cpus: Annotated[int, Meta(ge=1, le=256)] | None = None
    memory_bytes: Annotated[int, Meta(ge=64 * 1024**2)] | None = None
    disk_bytes: Annotated[int, Meta(ge=64 * 1024**2)] | None = None
    access: NetworkAccess | None = None
    """What it may reach: everything, the internet alone (not this computer, its LAN or other
    machines), or nothing; None: as configured, and `internet` for an ephemeral one."""
    allow: list[str] | None = None
    """All that it may reach, within `access`: `DOMAIN|ADDRESS|CIDR[:PORT][/udp]` each. `*.` before
    a domain means what is below it. None: whatever `access` permits."""
    host_access: list[Annotated[int, Meta(ge=1, le=65535)]] = field(default_factory=list)
    """TCP ports of this computer's loopback that it may reach, as `host.vmgr.internal`."""
    host_access_udp: list[Annotated[int, Meta(ge=1, le=65535)]] = field(default_factory=list)
    ports: list[PortForward] = field(default_factory=list)
    auto_ports: bool | None = None
    """Whether what it listens on appears on this computer; None: as configured, and not for an
    ephemeral one."""
    shares: list[Share] = field(default_factory=list)
    """Directories of this computer that it sees."""
    consent: bool = False
    """The person has agreed to its shares and ports, see the operation `consent`."""
    ephemeral: bool = False
    """Removed when it stops, or when the helper finds it dead."""
    cold: bool = False
    """Its first start is a boot, also where there is a template."""
    user: str | None = None
    """The user as whom commands run in it, made where there is none; `root`: root. None: as
    configured, and the image's own for an ephemeral machine."""
    user_data: str | None = None
    """What cloud-init in it is given (NoCloud). Its first start is a boot."""
    snapshot: str | None = None
    """`MACHINE:TAG`: it begins as that was, a machine of its own; then it has no other image, and
    with a memory no other CPUs or memory."""
    host_commands: HostCommands | None = None
    """What it may run on this computer; None: nothing."""
    volumes: list[AttachVolume] = field(default_factory=list)


class PortForward(Model, frozen=True, kw_only=True):
    """A port of this computer that leads into a machine."""

    host_port: Annotated[int, Meta(ge=1, le=65535)]
    guest_port: Annotated[int, Meta(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"
    address: str = "127.0.0.1"
    """Where it listens. 127.0.0.1 means ::1 as well; others than loopback can be reached by all
    who reach this computer."""
    open: bool = False
    """Whether it is served now; what a client says here and below is ignored."""
    automatic: bool = False
    """It is there because something in the machine listens on it."""
    via: Literal["network", "agent"] = "network"
    """`agent`: it leads through the machine's agent, to what only a program in it reaches."""
    problem: str | None = None
    """Why it has another number than in the machine, or is not open."""


class Denied(Model, frozen=True, kw_only=True):
    """Something that a machine tried to reach and may not."""

    name: str | None = None
    """What it asked for, as far as is known."""
    address: str | None = None
    port: int | None = None
    protocol: str
    """`dns`: it may not ask for the name, or not reach what the name means."""
    count: int
    last_at: float


class NetworkChange(Model, frozen=True, kw_only=True):
    """What a machine may reach from now on; what is not named stays as it is."""

    access: NetworkAccess | None = None
    allow: list[str] | None = None
    """The whole allow-list, in place of another."""
    allow_any: bool = False
    """No allow-list at all."""
    add: list[str] = field(default_factory=list)
    """Rules to add; the first begins an allow-list."""
    remove: list[str] = field(default_factory=list)
    """Rules to take away. With none left, nothing is allowed."""
    host_access: list[Annotated[int, Meta(ge=1, le=65535)]] | None = None
    host_access_udp: list[Annotated[int, Meta(ge=1, le=65535)]] | None = None


class NetworkInfo(Model, frozen=True, kw_only=True):
    """A machine's place in the network."""

    access: NetworkAccess
    address: str
    """IPv4, as other machines and this computer's forwarded ports reach it."""
    address6: str
    mac: str
    loopback: str
    """Its own address on this computer, where its ports have their own numbers."""
    name: str
    """The name that other machines know it by."""
    kind: Literal["switchboard", "user-mode", "none"]
    """`user-mode`: QEMU's own, where this host permits nothing better."""
    problem: str | None
    """What does not work, and why."""
    allow: list[str] | None = None
    """All that it may reach, within `access`; None: it has no allow-list."""
    host_access: list[int] = field(default_factory=list)
    host_access_udp: list[int] = field(default_factory=list)
    denied: list[Denied] = field(default_factory=list)
    """What it was denied lately, the latest first, since the helper started."""


class MachineInfo(Model, frozen=True, kw_only=True):
    """A machine as it is now."""

    id: str
    name: str
    status: MachineStatus
    status_reason: str | None
    """Why it is in this status, where that is not obvious: `VMM killed by signal 9`."""
    image: str
    image_digest: str
    kernel: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    disk_used_bytes: int | None
    ephemeral: bool
    created_at: float
    started_at: float | None
    boot_seconds: float | None
    """From the start of the VMM to the agent's hello, of the latest boot."""
    boot_id: str | None
    started_from: StartedFrom | None = None
    """Whether it booted or went on where it, or another machine, stood; None: it never ran."""
    init: str | None
    user: str = "root"
    """As whom commands run in it that name no other."""
    vmm: VmmInfo | None
    network: NetworkInfo | None = None
    clock: ClockInfo | None = None
    ports: list[PortForward] = field(default_factory=list)
    """What is forwarded and what appeared by itself."""
    host_commands: HostCommands = HostCommands()
    volumes: list[VolumeUse] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    """Directories of this computer that it sees."""
    notes: list[str] = field(default_factory=list)
    """Things the person should know: under emulation QEMU promises no isolation, and so on."""


class ForkMachine(Model, frozen=True, kw_only=True):
    """How many copies of a running machine are wanted, and their names."""

    names: list[str] = field(default_factory=list)
    """What is missing for `count` is made up from the machine's own."""
    count: Annotated[int, Meta(ge=1, le=100)] | None = None
    """None: as many as there are names, or one."""


class ForkedMachine(Model, frozen=True, kw_only=True):
    """What became of one copy."""

    name: str
    error: ErrorBody | None = None
    """Why it did not start; then there is no such machine."""
    seconds: float | None = None
    """From the request until it was ready."""


class StopMachine(Model, frozen=True, kw_only=True):
    """How long each way of stopping may take; None: as configured."""

    agent_timeout: Annotated[float, Meta(ge=0)] | None = None
    acpi_timeout: Annotated[float, Meta(ge=0)] | None = None


class StopStep(Model, frozen=True, kw_only=True):
    """One attempt at stopping a machine."""

    method: Literal["agent", "acpi", "kill"]
    seconds: float
    outcome: Literal["stopped", "timed-out", "failed"]


class StopReport(Model, frozen=True, kw_only=True):
    """How a machine was stopped."""

    machine: str
    method: Literal["agent", "acpi", "kill", "already-stopped"]
    seconds: float
    steps: list[StopStep] = field(default_factory=list)


class MachineRemoved(Model, frozen=True, kw_only=True):
    """What removing a machine did."""

    machine: str
    freed_bytes: int


class TerminalSize(Model, frozen=True, kw_only=True):
    """A terminal's size in character cells."""

    rows: Annotated[int, Meta(ge=1, le=65535)]
    cols: Annotated[int, Meta(ge=1, le=65535)]


class ExecSpec(Model, frozen=True, kw_only=True):
    """A command to run in a machine. Arguments and environment are UTF-8, as all JSON is."""

    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    """`NAME`, `UID` or either with `:GROUP`; None: the machine's own (`MachineInfo.user`)."""
    tty: TerminalSize | None = None
    stdin: bool = False
    login: bool = False
    """A login shell instead of `argv`."""
    builtin: (
        Literal[
            "pack", "unpack", "stat", "read", "write",
            "shell", "sftp", "connect", "listen", "accept",
        ]
        | None
    ) = None  # fmt: skip
    """A program of the agent's own, to which `argv[1:]` are arguments; see the agent protocol."""
    detached: bool = False
    secrets: list[SecretUse] = field(default_factory=list)
    """What it is given that nobody else sees; see docs/credentials.md."""


class ExitResult(Model, frozen=True, kw_only=True):
    """How a command ended. Exactly one of `code` and `signal` is set."""

    code: int | None = None
    signal: int | None = None
    core: bool = False
    dropped_stdout: int = 0
    dropped_stderr: int = 0

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 + n for a signal n."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


class JobInfo(Model, frozen=True, kw_only=True):
    """A command running in a machine, or one that ended and was not collected yet."""

    job: int
    pid: int
    label: str
    user: str
    tty: bool
    detached: bool
    attached: bool
    running_seconds: float
    exit: ExitResult | None


class JobSignal(Model, frozen=True, kw_only=True):
    """A signal for a job's process group."""

    signal: Annotated[int, Meta(ge=1, le=64)]


class ImageInfo(Model, frozen=True, kw_only=True):
    """A read-only root file system and its metadata."""

    digest: str
    """`sha256:` and 64 hexadecimal digits: of its files and of what says how it runs."""
    names: list[str]
    source: str
    created_at: float
    size_bytes: int
    """What it takes on disk."""
    init: str | None
    """The program that becomes PID 1; None: the agent is init."""
    default_user: str
    env: dict[str, str]
    entrypoint: list[str]
    architecture: str
    used_by: list[str] = field(default_factory=list)


class ImageBuild(Model, frozen=True, kw_only=True):
    """Build an image from a recipe that vmgr carries."""

    recipe: str
    name: str | None = None
    force: bool = False
    """Build even when an image of that name is there."""


class ImageImport(Model, frozen=True, kw_only=True):
    """Make an image from a root file system tarball on this host."""

    path: str
    """Absolute. The helper opens it with the rights of the person, who owns both."""
    name: str
    init: str | None = None
    """None: found by looking (`/sbin/init`, `/lib/systemd/systemd`); empty: none."""
    default_user: str = "root"
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)


class ImageRemoved(Model, frozen=True, kw_only=True):
    """What removing an image did."""

    removed: list[str]
    freed_bytes: int


class TemplateInfo(Model, frozen=True, kw_only=True):
    """A saved machine, fully booted, from which machines of its kind start."""

    key: str
    image: str
    image_digest: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    qemu: str
    accelerator: str
    created_at: float
    used_at: float
    size_bytes: int
    """What it takes on the host's disk."""


class TemplatesRemoved(Model, frozen=True, kw_only=True):
    """What removing templates did."""

    removed: list[str]
    """Their keys."""
    freed_bytes: int


class StartMachine(Model, frozen=True, kw_only=True):
    """How a machine is started."""

    cold: bool = False
    """Boot it, also where it could start from a template."""


class Check(Model, frozen=True, kw_only=True):
    """One thing that `doctor` looked at."""

    name: str
    status: Literal["ok", "warning", "error"]
    summary: str
    fix: str | None = None
    """The exact command or edit that mends it."""
    runnable: bool = False
    """It is a command that a shell can run as it is: `vmgr doctor --fix` offers that."""


class DoctorReport(Model, frozen=True, kw_only=True):
    """All that `doctor` looked at."""

    checks: list[Check]


class ConfigEntry(Model, frozen=True, kw_only=True):
    """A setting: what it is now, where that comes from and what it means."""

    key: str
    value: Any
    default: Any
    is_set: bool
    description: str


class SetConfig(Model, frozen=True, kw_only=True):
    """A new value, as text."""

    value: str


class Event(Model, frozen=True, kw_only=True):
    """Something that happened; `kind` is `machine.status`, `image.added` and so on."""

    seq: int
    at: float
    kind: str
    machine: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
