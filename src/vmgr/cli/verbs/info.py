"""`vmgr info`: all about a machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import age, bytes_text, fields, print_json
from vmgr.cli.parser import machine_argument
from vmgr.cli.verbs.net import host_ports, what

if TYPE_CHECKING:
    import argparse

    from vmgr.api.models import ClockInfo, Denied, MachineInfo, NetworkInfo, PortForward
    from vmgr.api.shares import Share
    from vmgr.api.volumes import VolumeUse

DESCRIPTION = "Show all about a machine."
EXAMPLES = """examples:
  vmgr info web
  vmgr info web --json"""

_DENIED = 5  # lines; vmgr net show has all


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    machine_argument(parser)


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    machine = client().machine_info(options.name)
    if options.json:
        print_json(machine)
    else:
        _show(machine)
    return 0


def _network(network: NetworkInfo | None) -> list[tuple[str, object]]:
    if network is None:
        return []
    return [
        ("Network", f"{network.access} ({network.kind})"),
        ("Address", f"{network.address}, {network.address6}"),
        ("On this computer", network.loopback),
        ("Known as", network.name),
        ("Allowed", None if network.allow is None else ", ".join(network.allow) or "nothing"),
        ("Host ports", host_ports(network) or None),
        ("Network problem", network.problem),
        *(("Denied", _denied(one)) for one in network.denied[:_DENIED]),
    ]


def _host_commands(machine: MachineInfo) -> str | None:
    rights = machine.host_commands
    if rights.mode == "none":
        return None
    allowed = f" ({', '.join(rights.allow)})" if rights.allow and rights.mode != "all" else ""
    return rights.mode + allowed


def clock_text(clock: ClockInfo | None, now: float) -> str | None:
    """How a machine's clock is."""
    if clock is None:
        return None
    off, sure = clock.offset_seconds * 1e3, clock.uncertainty_seconds * 1e3
    text = f"{off:+.1f} ms (within {sure:.1f} ms)"
    if clock.synchronized:
        return f"{text}, kept by the machine itself"
    if clock.corrected and clock.corrected_at is not None:
        how = "stepped" if clock.corrected == "step" else "slewed"
        text += f", {how} {age(max(0, now - clock.corrected_at))} ago"
    return text


def _port(port: PortForward) -> str:
    note = f" ({port.problem})" if port.problem else ""
    kind = "" if port.protocol == "tcp" else "/udp"
    return f"{port.address}:{port.host_port} to {port.guest_port}{kind}{note}"


def _volume(volume: VolumeUse) -> str:
    return f"{volume.volume} at {volume.path}{' (read-only)' if volume.read_only else ''}"


def share_text(share: Share) -> str:
    """A share on one line."""
    same = share.guest in {None, share.host}
    where = share.host if same else f"{share.host} at {share.guest}"
    how = [
        "read-only" if share.read_only else None,
        share.transport and f"{share.transport}: {share.reason}",
        share.problem,
    ]
    said = "; ".join(word for word in how if word)
    return f"{where} ({said})" if said else where


def _denied(denied: Denied) -> str:
    port = "" if denied.port is None else f" port {denied.port}"
    times = "" if denied.count == 1 else f", {denied.count} times"
    return f"{what(denied)}{port}, {denied.protocol}{times}"


def _show(machine: MachineInfo) -> None:
    now = time.time()
    vmm = machine.vmm
    reason = f" ({machine.status_reason})" if machine.status_reason else ""
    boot = machine.boot_seconds
    fields([
        ("Name", machine.name),
        ("Id", machine.id),
        ("Status", machine.status + reason),
        ("Image", f"{machine.image} ({machine.image_digest})"),
        ("Kernel", machine.kernel),
        ("Init", machine.init or "agent"),
        ("User", machine.user),
        ("CPUs", machine.cpus),
        ("Memory", bytes_text(machine.memory_bytes)),
        ("Disk", bytes_text(machine.disk_bytes)),
        ("Disk used", bytes_text(machine.disk_used_bytes)),
        ("Ephemeral", "yes" if machine.ephemeral else None),
        ("Created", f"{age(now - machine.created_at)} ago"),
        ("Started", None if machine.started_at is None else f"{age(now - machine.started_at)} ago"),
        ("Started from", machine.started_from),
        ("Start took", None if boot is None else f"{boot:.2f} s"),
        ("Boot id", machine.boot_id),
        ("VMM", None if vmm is None else f"QEMU {vmm.qemu}, pid {vmm.pid}, {vmm.machine_type}"),
        ("Accelerator", None if vmm is None else vmm.accelerator),
        ("Sandbox", None if vmm is None else vmm.sandbox),
        ("Clock", clock_text(machine.clock, now)),
        *_network(machine.network),
        ("Host commands", _host_commands(machine)),
        *(("Port", _port(port)) for port in machine.ports),
        *(("Volume", _volume(volume)) for volume in machine.volumes),
        *(("Share", share_text(share)) for share in machine.shares),
        *(("Note", text) for text in machine.notes),
    ])  # fmt: skip
