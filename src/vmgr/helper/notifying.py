"""What of all that happens is worth a notification, and looking for a disk that fills up.

The table reads the helper's events, so that whoever publishes one need not know of desktops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from vmgr.desktop import Action, Notification
from vmgr.desktop.bus import BusError
from vmgr.errors import NotFoundError, UsageError
from vmgr.machine.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.api.models import Event
    from vmgr.helper.helper import Helper

__all__ = ["DiskWatch", "follow_events", "notification_of"]

_LOOK_EVERY: Final = 60.0
_LOW: Final = 2 << 30
_LOW_PART: Final = 0.05  # of a small file system; less of a large one is still plenty
_PRIVILEGED: Final = 1024
_FILES: Final = "org.freedesktop.FileManager1"

log = logging.getLogger(__name__)


async def follow_events(helper: Helper) -> None:
    """Notify of what happens, until the helper stops."""
    while not helper.stopping.is_set():  # one that is behind is dropped, and begins anew
        async for event in helper.events.follow():
            if (notification := notification_of(helper, event)) is not None:
                helper.notifications.notify(notification)


def notification_of(helper: Helper, event: Event) -> Notification | None:
    """The notification that an event is worth; None: none."""
    data, name = event.data, event.machine or ""
    made: Notification | None = None
    match event.kind:
        case "machine.exited" if data.get("cause") in {"failed", "panic"}:
            made = _crashed(helper, name, data)
        case "machine.resume-failed":
            made = Notification(
                "resume", f"{name} was started anew", about=name,
                text=f"It could not go on where it stood: {data.get('reason')}. "
                "Its disk is as it was; what ran in it is lost.",
            )  # fmt: skip
        case "machine.autostart-failed":
            made = Notification(
                "autostart", f"{name} was not started", _sentence(data.get("reason")), about=name
            )
        case "template.failed":
            made = Notification(
                "template", "A template could not be built",
                f"{_sentence(data.get('reason'))} Machines of this kind boot, which takes longer.",
                about=str(data.get("key")), urgency="low",
                actions=(_show(helper, "Show log", helper.paths.helper_log),),
            )  # fmt: skip
        case "port.opened" if data.get("problem") and _is_surprise(data):
            made = Notification(
                "port", f"Port {data.get('guest_port')} of {name} is {data.get('port')} here",
                _sentence(data["problem"]), about=f"{name} {data.get('guest_port')}", urgency="low",
            )  # fmt: skip
        case "port.failed":
            made = Notification(
                "port", f"Port {data.get('port')} of {name} is not reached",
                _sentence(data.get("problem")), about=f"{name} {data.get('port')}",
            )  # fmt: skip
        case "machine.disk-full":
            made = Notification(
                "disk-full", f"{name} stands still", about=name, urgency="critical",
                text="No space is left for its disk on this computer. Free some, and it goes on.",
            )  # fmt: skip
        case "host.disk-low":
            free, place = format_size(int(data.get("free_bytes", 0))), str(data.get("place"))
            made = Notification(
                "disk", "The disk is nearly full", about=place, urgency="critical",
                text=f"{free} are free for {place}. Machines that find no more space "
                "stand still. See what can go: vmgr image ls, vmgr snapshot ls, vmgr ls",
            )  # fmt: skip
        case "helper.crashed":
            made = Notification(
                "helper", "vmgr's helper crashed and was started again",
                f"Machines went on. The report is {data.get('report')}",
            )  # fmt: skip
    return made


def _is_surprise(data: dict[str, Any]) -> bool:
    """Whether a port has another number here than it might: those for root alone always have."""
    number = int(data.get("guest_port", 0))
    return number >= _PRIVILEGED and number != data.get("port")


def _sentence(reason: object) -> str:
    """A reason, as it stands alone."""
    text = str(reason)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _crashed(helper: Helper, name: str, data: dict[str, Any]) -> Notification | None:
    try:
        machine = helper.machines.get(name)
    except (NotFoundError, UsageError):
        return None
    if machine.row.ephemeral:  # whoever waits for its command hears of it
        return None
    paths = machine.paths
    where = paths.console_log if data.get("cause") == "panic" else paths.vmm_log
    return Notification(
        "crash", f"{name} has crashed", _sentence(data.get("reason")), about=name,
        urgency="critical", actions=(_show(helper, "Show log", where),),
    )  # fmt: skip


def _show(helper: Helper, label: str, path: Path) -> Action:
    """An action that shows a file in the person's file manager, which the bus starts for it."""

    async def show() -> None:
        try:
            await helper.bus.call(
                _FILES, "/org/freedesktop/FileManager1", "ShowItems", "ass", [path.as_uri()], ""
            )
        except BusError as error:
            log.info("%s is not shown: %s", path, error)

    return Action(label, lambda: helper.watchers.start(show(), name=f"show {path.name}"))


class DiskWatch:
    """Tells when the file systems of vmgr's data are nearly full, once each time.

    Args:
        look_every: seconds between looks.
    """

    def __init__(self, helper: Helper, look_every: float = _LOOK_EVERY) -> None:
        self._helper = helper
        self._look_every = look_every
        self._told: set[int] = set()

    async def run(self) -> None:
        """Look again and again, until the helper stops."""
        while not self._helper.stopping.is_set():
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_every):
                    await self._helper.stopping.wait()

    async def _look(self) -> None:
        paths = self._helper.paths
        seen: set[int] = set()
        for place in (paths.data, paths.state, paths.cache):
            try:
                device, free, size = await self._helper.executors.in_files(_space, place)
            except OSError as error:
                log.info("%s: %s", place, error.strerror)
                continue
            if device in seen:
                continue
            seen.add(device)
            self._judge(place, device, free, size)

    def _judge(self, place: Path, device: int, free: int, size: int) -> None:
        low = min(_LOW, int(size * _LOW_PART))
        if free > 2 * low:  # a good deal more, lest it be told at each turn
            self._told.discard(device)
        if free >= low or device in self._told:
            return
        self._told.add(device)
        log.warning("%s free for %s", format_size(free), place)
        self._helper.events.publish("host.disk-low", place=str(place), free_bytes=free)


def _space(place: Path) -> tuple[int, int, int]:
    """The file system's number, what an ordinary user may still write to it, and its size."""
    found = os.statvfs(place)
    return place.stat().st_dev, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
