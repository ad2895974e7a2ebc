"""`vmgr open`: a machine's web page in the browser."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from vmgr.cli.connection import client
from vmgr.cli.output import note
from vmgr.cli.parser import machine_argument, port_number
from vmgr.errors import NotFoundError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vmgr.api.models import PortForward

DESCRIPTION = """Open a machine's port in your browser. Without a port the likeliest of those that
are open is taken. The URL is printed; where there is no desktop, that is all."""
EXAMPLES = """examples:
  vmgr open web
  vmgr open web 3000"""

_LIKELY: Final = (80, 443, 8080, 3000, 8000, 5173, 5000, 4200, 8443, 8888)
_SECURE: Final = (443, 8443)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    machine_argument(parser)
    parser.add_argument(
        "port", metavar="PORT", nargs="?", type=port_number, help="the port in the machine"
    )


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    helper = client()
    ports = helper.port_list(options.name)
    # Whoever connects to a port of a suspended machine that was asked for wakes it.
    asleep = not any(p.open for p in ports) and (
        helper.machine_info(options.name).status == "suspended"
    )
    found = choose(ports, options.port, asleep=asleep)
    if found is None:
        which = f"port {options.port}" if options.port else "any port"
        raise NotFoundError(
            f"nothing in machine {options.name} can be reached on {which}",
            next_step=f"start it there, or see: vmgr port ls {options.name}",
        )
    address = url(found)
    print(address, flush=True)
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        _show(address)
    return 0


def choose(
    ports: Sequence[PortForward], wanted: int | None, *, asleep: bool = False
) -> PortForward | None:
    """The port that is meant: the one that was named, else the likeliest web server."""
    able = [p for p in ports if (p.open or asleep) and p.protocol == "tcp"]
    if wanted is not None:
        able = [p for p in able if p.guest_port == wanted]
    order = {port: at for at, port in enumerate(_LIKELY)}
    return min(
        able, key=lambda p: (order.get(p.guest_port, len(order)), p.guest_port), default=None
    )


def url(port: PortForward) -> str:
    """Where it is."""
    scheme = "https" if port.guest_port in _SECURE else "http"
    usual = {"http": 80, "https": 443}[scheme]
    host = port.address
    if host in {"127.0.0.1", "::1", "0.0.0.0", "::"}:  # noqa: S104 (compared)
        host = "localhost"
    elif ":" in host:
        host = f"[{host}]"
    where = host if port.host_port == usual else f"{host}:{port.host_port}"
    return f"{scheme}://{where}/"


def _show(address: str) -> None:
    if shutil.which("xdg-open") is None:
        note("vmgr: there is no xdg-open (package xdg-utils), so the browser is yours to start.")
        return
    from vmgr.spawner import spawn_detached

    mask = os.umask(0o077)
    os.umask(mask)
    try:
        # The browser may be a child of it and stays, so nobody waits for it or ends it. This
        # command's environment is the person's own, desktop and all.
        spawn_detached(["xdg-open", address], env=dict(os.environ), umask=mask)
    except OSError:
        note("vmgr: the browser could not be started.")
