"""Who looks after the helper, and what that means for machines when the person logs out."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from vmgr.doctor.host import good, warning
from vmgr.errors import VmgrError
from vmgr.identity import SOCKET_UNIT
from vmgr.service.install import service
from vmgr.service.systemd import has_user_manager, is_installed, lingers, systemctl

if TYPE_CHECKING:
    from vmgr.api.models import Check
    from vmgr.doctor.host import Host

__all__ = ["service_manager"]

_NAME: Final = "service manager"
_FIX: Final = "vmgr helper install"


async def service_manager(host: Host) -> Check:
    """Whether systemd has the helper, as it should, and until when machines run."""
    found = await asyncio.get_running_loop().run_in_executor(host.executor, _look, host)
    if (
        found.status != "ok"
        or not is_installed(os.environ, host.paths.helper_socket)
        or not has_user_manager(os.environ)
    ):
        return found
    try:
        state = (
            await systemctl("show", SOCKET_UNIT, "--property", "ActiveState", "--value")
        ).strip()
    except VmgrError as error:
        return warning(_NAME, f"systemd does not answer: {error.message}")
    if state != "active":
        return warning(_NAME, f"systemd does not listen ({SOCKET_UNIT}: {state})", _FIX)
    return found


def _look(host: Host) -> Check:
    if not is_installed(os.environ, host.paths.helper_socket):
        if not has_user_manager(os.environ):
            return good(_NAME, "none: the helper is started by the command that needs it")
        return good(
            _NAME,
            "systemd does not look after the helper, so machines end with your session; "
            "to have them suspended in time, and started with it: vmgr helper install",
        )
    units = service(host.paths, os.environ)
    for path, (content, _mode) in units.items():
        # The environment is as it was then; the units must be what this vmgr would write.
        if path != host.paths.service_environment and path.read_bytes() != content:
            return warning(_NAME, f"{path} is not what this vmgr would write", _FIX)
    if lingers(host.user):
        return good(_NAME, "systemd; you linger, so machines go on when you log out")
    action = str(host.config.get("shutdown.action"))
    ends = {"suspend": "suspended", "stop": "stopped", "keep": "ended as by a power cut"}[action]
    return good(
        _NAME,
        f"systemd; machines are {ends} when your last session ends; to have them go on: "
        f"loginctl enable-linger {host.user}",
    )
