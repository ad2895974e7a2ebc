"""The table of operations: the helper routes, the clients call and OpenAPI describes by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vmgr.api import models as m
from vmgr.api import snapshots
from vmgr.api.audit import AuditReport
from vmgr.api.consent import Consent, Opening
from vmgr.api.hostcommands import HostCommandsChange
from vmgr.api.shares import Share, UnwantedShare
from vmgr.api.usage import Usage
from vmgr.api.volumes import AttachVolume, CreateVolume, ResizeVolume, VolumeInfo

__all__ = ["API_PREFIX", "OPERATIONS", "Operation", "Parameter"]

API_PREFIX = "/v1"


@dataclass(frozen=True)
class Parameter:
    """A query parameter."""

    name: str
    type: type[Any]
    description: str
    default: Any = None


@dataclass(frozen=True)
class Operation:
    """One thing a client can ask.

    `stream` operations are WebSocket upgrades; their messages are described in `vmgr.api.streams`.
    """

    name: str
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    summary: str
    request: Any = None
    response: Any = None
    query: tuple[Parameter, ...] = ()
    stream: Literal["job", "log", "event", "image", "question"] | None = None
    tags: tuple[str, ...] = field(default=())

    @property
    def path_parameters(self) -> list[str]:
        """Names in braces, in order."""
        return [p[1:-1] for p in self.path.split("/") if p.startswith("{")]


_FORCE = Parameter("force", bool, "stop what is in the way first", default=False)

_CONSENT = Parameter("consent", bool, "the person has agreed, see `consent`", default=False)

OPERATIONS: dict[str, Operation] = {
    op.name: op
    for op in (
        Operation("version", "GET", "/version", "Versions", response=m.Version),
        Operation(
            "helper_status", "GET", "/helper", "The helper as it is now", response=m.HelperStatus
        ),
        Operation(
            "helper_stop", "POST", "/helper/stop", "Stop the helper", m.HelperStop, m.HelperStatus
        ),
        Operation(
            "ssh_start",
            "POST",
            "/ssh/start",
            "Have the SSH server run; answers when it listens",
            response=m.SshServer,
        ),
        Operation(
            "doctor",
            "GET",
            "/doctor",
            "What works on this host and what would mend the rest",
            response=m.DoctorReport,
        ),
        Operation(
            "audit",
            "GET",
            "/audit",
            "Every process of vmgr, and which process rules it breaks",
            response=AuditReport,
        ),
        Operation(
            "usage",
            "GET",
            "/usage",
            "What running machines and this computer have used so far",
            response=Usage,
        ),
        Operation("config_list", "GET", "/config", "All settings", response=list[m.ConfigEntry]),
        Operation("config_get", "GET", "/config/{key}", "One setting", response=m.ConfigEntry),
        Operation(
            "config_set", "PUT", "/config/{key}", "Change a setting", m.SetConfig, m.ConfigEntry
        ),
        Operation(
            "config_unset", "DELETE", "/config/{key}", "Back to the default", response=m.ConfigEntry
        ),
        Operation(
            "secret_list",
            "GET",
            "/secrets",
            "All secrets, not their values",
            response=list[m.SecretInfo],
        ),
        Operation(
            "secret_set", "PUT", "/secrets/{secret}", "Keep a secret", m.SetSecret, m.SecretInfo
        ),
        Operation(
            "secret_remove",
            "DELETE",
            "/secrets/{secret}",
            "Forget a secret",
            response=m.SecretInfo,
        ),
        Operation(
            "events",
            "GET",
            "/events",
            "Follow what happens",
            stream="event",
            query=(Parameter("since", int, "replay from this sequence number where still known"),),
        ),
        Operation("machine_list", "GET", "/machines", "All machines", response=list[m.MachineInfo]),
        Operation(
            "machine_create",
            "POST",
            "/machines",
            "Create a machine",
            m.CreateMachine,
            m.MachineInfo,
        ),
        Operation(
            "machine_info", "GET", "/machines/{machine}", "One machine", response=m.MachineInfo
        ),
        Operation(
            "machine_remove",
            "DELETE",
            "/machines/{machine}",
            "Remove a machine and its disk",
            response=m.MachineRemoved,
            query=(_FORCE,),
        ),
        Operation(
            "machine_start",
            "POST",
            "/machines/{machine}/start",
            "Start it; answers when ready",
            m.StartMachine,
            m.MachineInfo,
        ),
        Operation(
            "machine_stop",
            "POST",
            "/machines/{machine}/stop",
            "Stop it in an orderly way",
            m.StopMachine,
            m.StopReport,
        ),
        Operation(
            "machine_restart",
            "POST",
            "/machines/{machine}/restart",
            "Stop and start it",
            m.StopMachine,
            m.MachineInfo,
        ),
        Operation(
            "machine_suspend",
            "POST",
            "/machines/{machine}/suspend",
            "Save its memory to disk and end its VMM",
            response=m.MachineInfo,
        ),
        Operation(
            "machine_resume",
            "POST",
            "/machines/{machine}/resume",
            "Let a suspended machine go on",
            response=m.MachineInfo,
        ),
        Operation(
            "machine_fork",
            "POST",
            "/machines/{machine}/fork",
            "Make running copies of a running machine",
            m.ForkMachine,
            list[m.ForkedMachine],
        ),
        Operation(
            "machine_kill",
            "POST",
            "/machines/{machine}/kill",
            "End its VMM at once",
            response=m.StopReport,
        ),
        Operation(
            "snapshot_list",
            "GET",
            "/snapshots",
            "Snapshots of all machines, or of one",
            response=list[snapshots.SnapshotInfo],
            query=(Parameter("machine", str, "only those of machines of this name"),),
        ),
        Operation(
            "snapshot_create",
            "POST",
            "/machines/{machine}/snapshots",
            "Take a snapshot of it",
            snapshots.CreateSnapshot,
            snapshots.SnapshotInfo,
        ),
        Operation(
            "snapshot_restore",
            "POST",
            "/snapshots/{snapshot}/restore",
            "Make the machine what it was",
            response=m.MachineInfo,
            query=(_FORCE,),
        ),
        Operation(
            "snapshot_remove",
            "DELETE",
            "/snapshots/{snapshot}",
            "Remove a snapshot",
            response=snapshots.SnapshotInfo,
        ),
        Operation(
            "snapshot_export",
            "GET",
            "/snapshots/export",
            "Write a snapshot to one file",
            snapshots.SnapshotExport,
            snapshots.SnapshotFile,
            stream="image",
        ),
        Operation(
            "snapshot_import",
            "GET",
            "/snapshots/import",
            "Take a snapshot from a file",
            snapshots.SnapshotImport,
            snapshots.SnapshotInfo,
            stream="image",
        ),
        Operation("volume_list", "GET", "/volumes", "All volumes", response=list[VolumeInfo]),
        Operation(
            "volume_create", "POST", "/volumes", "Make an empty volume", CreateVolume, VolumeInfo
        ),
        Operation(
            "volume_remove",
            "DELETE",
            "/volumes/{volume}",
            "Remove a volume that no machine has",
            response=VolumeInfo,
        ),
        Operation(
            "volume_resize",
            "POST",
            "/volumes/{volume}/resize",
            "Grow a volume, also while a machine uses it",
            ResizeVolume,
            VolumeInfo,
        ),
        Operation(
            "volume_attach",
            "POST",
            "/machines/{machine}/volumes",
            "Give it a volume, also while it runs",
            AttachVolume,
            m.MachineInfo,
        ),
        Operation(
            "volume_detach",
            "DELETE",
            "/machines/{machine}/volumes/{volume}",
            "Take a volume from it, also while it runs",
            response=m.MachineInfo,
        ),
        Operation(
            "network_change",
            "POST",
            "/machines/{machine}/network",
            "Change what it may reach, also while it runs",
            m.NetworkChange,
            m.MachineInfo,
        ),
        Operation(
            "host_commands_change",
            "POST",
            "/machines/{machine}/host-commands",
            "Change what it may run on this computer, from its next command on",
            HostCommandsChange,
            m.MachineInfo,
        ),
        Operation(
            "authorize",
            "GET",
            "/authorize",
            "Answer questions about what machines may do",
            stream="question",
            query=(Parameter("machine", str, "only questions about this machine"),),
        ),
        Operation(
            "consent",
            "POST",
            "/consent",
            "Ask the person about what is to be opened of this computer, or say what to ask",
            Opening,
            Consent,
        ),
        Operation(
            "share_list",
            "GET",
            "/machines/{machine}/shares",
            "Directories of this computer in it",
            response=list[Share],
        ),
        Operation(
            "share_add",
            "POST",
            "/machines/{machine}/shares",
            "Share a directory of this computer with it",
            Share,
            Share,
            query=(_CONSENT,),
        ),
        Operation(
            "share_remove",
            "POST",
            "/machines/{machine}/shares/remove",
            "Stop sharing a directory",
            UnwantedShare,
        ),
        Operation(
            "port_list",
            "GET",
            "/machines/{machine}/ports",
            "Its forwarded ports",
            response=list[m.PortForward],
        ),
        Operation(
            "port_add",
            "POST",
            "/machines/{machine}/ports",
            "Forward a port of this computer to it",
            m.PortForward,
            m.PortForward,
            query=(_CONSENT,),
        ),
        Operation(
            "port_remove",
            "POST",
            "/machines/{machine}/ports/remove",
            "Stop forwarding a port",
            m.PortForward,
        ),
        Operation(
            "machine_logs",
            "GET",
            "/machines/{machine}/logs",
            "Its logs",
            stream="log",
            query=(
                Parameter("source", str, "console, vmm or helper", default="console"),
                Parameter("follow", bool, "go on with what is added", default=False),
                Parameter("tail", int, "only the last lines"),
            ),
        ),
        Operation(
            "job_list", "GET", "/machines/{machine}/jobs", "Its jobs", response=list[m.JobInfo]
        ),
        Operation(
            "job_signal",
            "POST",
            "/machines/{machine}/jobs/{job}/signal",
            "Signal a job",
            m.JobSignal,
        ),
        Operation(
            "job_forget", "DELETE", "/machines/{machine}/jobs/{job}", "Drop an ended job's record"
        ),
        Operation("exec", "GET", "/machines/{machine}/exec", "Run a command in it", stream="job"),
        Operation(
            "attach",
            "GET",
            "/machines/{machine}/jobs/{job}/attach",
            "Take over a job's streams",
            stream="job",
        ),
        Operation(
            "run", "GET", "/run", "Run a command in a fresh machine, then remove it", stream="job"
        ),
        Operation(
            "template_list", "GET", "/templates", "All templates", response=list[m.TemplateInfo]
        ),
        Operation(
            "template_build",
            "GET",
            "/templates/build",
            "Build the template of machines of one kind",
            m.CreateMachine,
            m.TemplateInfo,
            stream="image",
        ),
        Operation(
            "template_remove",
            "DELETE",
            "/templates/{template}",
            "Remove templates whose keys begin so",
            response=m.TemplatesRemoved,
        ),
        Operation("image_list", "GET", "/images", "All images", response=list[m.ImageInfo]),
        Operation("image_info", "GET", "/images/{image}", "One image", response=m.ImageInfo),
        Operation(
            "image_remove", "DELETE", "/images/{image}", "Remove an image", response=m.ImageRemoved
        ),
        Operation(
            "image_build",
            "GET",
            "/images/build",
            "Build an image",
            m.ImageBuild,
            m.ImageInfo,
            stream="image",
        ),
        Operation(
            "image_import",
            "GET",
            "/images/import",
            "Import a root file system tarball",
            m.ImageImport,
            m.ImageInfo,
            stream="image",
        ),
        Operation(
            "image_prune",
            "POST",
            "/images/prune",
            "Remove images and kernels that nothing uses",
            response=m.ImageRemoved,
        ),
        Operation(
            "helper_logs",
            "GET",
            "/helper/logs",
            "The helper's log",
            stream="log",
            query=(
                Parameter("follow", bool, "go on with what is added", default=False),
                Parameter("tail", int, "only the last lines"),
            ),
        ),
    )
}
