"""A private session bus (a real dbus-daemon), and a desktop on it: notifications, file manager.

The desktop is a small D-Bus service of the test's own that keeps the specification's contract:
numbers, replacing, closing, actions. The daemons that Debian has need a display.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Self

import pytest
from dbus_fast.aio import MessageBus
from dbus_fast.constants import MessageType, RequestNameReply
from dbus_fast.message import Message

if TYPE_CHECKING:
    from pathlib import Path

NOTIFICATIONS = "org.freedesktop.Notifications"
FILES = "org.freedesktop.FileManager1"
CONFIG = """<busconfig>
<type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>"""
needs_bus = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon")


class Daemon:
    """A dbus-daemon at `path`."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:path={path}"
        config = path.with_suffix(".conf")
        config.write_text(CONFIG.format(path=path))
        read, write = os.pipe()
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", f"--print-address={write}"],
            stdin=subprocess.DEVNULL, pass_fds=(write,),
        )  # fmt: skip
        os.close(write)
        with os.fdopen(read) as told:
            assert told.readline()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)


class Desktop:
    """What shows notifications, on a bus. Use it as an asynchronous context manager."""

    def __init__(
        self, daemon: Daemon, capabilities: tuple[str, ...] = ("actions", "body", "body-markup")
    ) -> None:
        self._daemon = daemon
        self._capabilities = list(capabilities)
        self._last = 0
        self.shown: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.files: asyncio.Queue[list[str]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self.bus = await MessageBus(bus_address=self._daemon.address).connect()
        self.bus.add_message_handler(self._called)
        for name in (NOTIFICATIONS, FILES):
            assert await self.bus.request_name(name) is RequestNameReply.PRIMARY_OWNER
        return self

    async def __aexit__(self, *_: object) -> None:
        self.bus.disconnect()

    async def next(self) -> dict[str, Any]:
        """The next notification that is shown."""
        async with asyncio.timeout(30):
            return await self.shown.get()

    def choose(self, number: int, action: str) -> None:
        """The person clicks an action."""
        self._signal("ActionInvoked", "us", number, action)

    def close(self, number: int) -> None:
        """The person closes a notification."""
        self._signal("NotificationClosed", "uu", number, 2)

    async def owner(self, name: str) -> int:
        """The process that owns a name."""
        asked = Message(
            destination="org.freedesktop.DBus", path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus", member="GetConnectionUnixProcessID",
            signature="s", body=[name],
        )  # fmt: skip
        reply = await self.bus.call(asked)
        assert reply.message_type is MessageType.METHOD_RETURN, reply.body
        return int(reply.body[0])

    def _signal(self, member: str, signature: str, *body: Any) -> None:
        path = "/org/freedesktop/Notifications"
        self.bus.send(Message.new_signal(path, NOTIFICATIONS, member, signature, list(body)))

    def _called(self, message: Message) -> Message | None:
        match (message.interface, message.member):
            case (_, "GetCapabilities"):
                return Message.new_method_return(message, "as", [self._capabilities])
            case (_, "Notify"):
                names = (
                    "app", "replaces", "icon", "title", "text", "actions", "hints", "expire"
                )  # fmt: skip
                told = dict(zip(names, message.body, strict=True))
                self._last = told["replaces"] or self._last + 1
                self.shown.put_nowait({**told, "number": self._last})
                return Message.new_method_return(message, "u", [self._last])
            case (_, "ShowItems"):
                self.files.put_nowait(message.body[0])
                return Message.new_method_return(message)
        return None
