"""The helper's connection to the person's session bus, for as long as there is one.

Nothing here is of importance: no bus, a bus that dies or one that does not answer is no error, and
nobody waits for any of them. The connection is made in the background, and made anew when the bus
has come back: with lingering the helper outlives many sessions' buses. While connected we own our
name on it (process rule 10), so that what asks who we are gets an answer.

All use of the D-Bus library is in a thread of its own (`vmgr.desktop.thread`); signals are handed
to the helper's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from vmgr.desktop.thread import BusThread
from vmgr.identity import APP_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbus_fast.aio import MessageBus
    from dbus_fast.message import Message

    Signal = Callable[[str, list[Any]], None]

__all__ = ["BusError", "SessionBus", "addresses_of"]

_ANSWER_WITHIN: Final = 10.0
_LOOK_EVERY: Final = 30.0
_LONGEST: Final = 4_096

log = logging.getLogger(__name__)


class BusError(Exception):
    """There is no bus, or what was called failed."""


def addresses_of(environ: Mapping[str, str]) -> list[str]:
    """Where the session bus may be: what is said, and systemd's usual place.

    What is said is of the session in which the helper was started, and that may have ended.
    """
    found = []
    if told := environ.get("DBUS_SESSION_BUS_ADDRESS"):
        found.append(told[:_LONGEST])
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    usual = Path(runtime, "bus")
    if runtime.startswith("/") and usual.is_socket():
        from urllib.parse import quote

        found.append(f"unix:path={quote(os.fspath(usual))}")
    return list(dict.fromkeys(found))


class SessionBus:
    """A connection that comes and goes with the session.

    Args:
        environ: in which the bus is looked for.
        thread: where the library runs, and who stops it; None: one of our own.
        look_every: seconds after which it is looked for again.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        look_every: float = _LOOK_EVERY,
        thread: BusThread | None = None,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._look_every = look_every
        self._home = asyncio.get_running_loop()
        self._owned = thread is None
        self._thread = thread or BusThread()
        self._bus: MessageBus | None = None
        self._wanted = asyncio.Event()
        self._signals: dict[str, Signal] = {}
        self._said: dict[str, str] = {}
        """What was last wrong at an address."""
        self.connections = 0
        """How many there have been; what was asked of an earlier one is void."""

    @property
    def connected(self) -> bool:
        """There is a bus, and we are on it."""
        return self._bus is not None

    def on_signal(self, interface: str, heard: Signal) -> None:
        """Have `heard(member, arguments)` called for signals of an interface; before `run`."""
        self._signals[interface] = heard

    def want(self) -> None:
        """Look for a bus now, not only after a while."""
        self._wanted.set()

    async def run(self) -> NoReturn:
        """Keep connected, until cancelled."""
        try:
            while True:
                for address in await asyncio.to_thread(addresses_of, self._environ):
                    await self._thread.run(self._live(address))
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_every):
                        await self._wanted.wait()
        finally:
            if self._owned:
                self._thread.stop()

    async def call(
        self, name: str, path: str, member: str, signature: str = "", *arguments: Any,
        interface: str | None = None,
    ) -> list[Any]:  # fmt: skip
        """Call a method of `interface` (that of the same name as the service) and wait for it.

        Raises:
            BusError: there is no bus, no such service, or it failed or did not answer.
        """
        if (bus := self._bus) is None:
            raise BusError("there is no session bus")
        return await self._thread.run(
            _call(bus, name, path, (interface or name, member), signature, arguments)
        )

    # -- in the library's loop -------------------------------------------------------------------

    async def _live(self, address: str) -> None:
        """Be on a bus until it has gone; nothing is raised."""
        bus = await self._connect(address)
        if bus is None:
            return
        self.connections += 1
        self._bus = bus
        try:
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 (whatever ended it, it has ended)
            log.info("the session bus has gone: %r", error)
        finally:
            self._bus = None
            bus.disconnect()

    async def _connect(self, address: str) -> MessageBus | None:
        bus = None
        try:
            from dbus_fast.aio import MessageBus

            async with asyncio.timeout(_ANSWER_WITHIN):
                bus = await MessageBus(bus_address=address).connect()
                await self._introduce(bus)
        except Exception as error:  # noqa: BLE001 (nothing of it may disturb the helper)
            if (said := repr(error)) != self._said.get(address):
                self._said[address] = said
                log.info("no session bus at %s: %s", address, said)
            if bus is not None:
                bus.disconnect()
            return None
        self._said.pop(address, None)
        log.info("on the session bus as %s", bus.unique_name)
        return bus

    async def _introduce(self, bus: MessageBus) -> None:
        from dbus_fast.constants import NameFlag, RequestNameReply

        taken = await bus.request_name(APP_ID, NameFlag.DO_NOT_QUEUE)
        if taken is not RequestNameReply.PRIMARY_OWNER:
            log.info("%s is another helper's on the session bus", APP_ID)
        bus.add_message_handler(self._heard)
        for interface in self._signals:
            rule = f"type='signal',sender='{interface}',interface='{interface}'"
            dbus = "org.freedesktop.DBus"
            await _call(bus, dbus, "/org/freedesktop/DBus", (dbus, "AddMatch"), "s", (rule,))

    def _heard(self, message: Message) -> None:
        from dbus_fast.constants import MessageType

        if message.message_type is MessageType.SIGNAL and message.interface in self._signals:
            heard = self._signals[message.interface]
            with contextlib.suppress(RuntimeError):  # the helper's loop has ended
                self._home.call_soon_threadsafe(heard, message.member or "", message.body)


async def _call(  # noqa: PLR0917 (what a message is made of)
    bus: MessageBus,
    name: str,
    path: str,
    method: tuple[str, str],
    signature: str,
    arguments: tuple[Any, ...],
) -> list[Any]:
    from dbus_fast.constants import MessageType
    from dbus_fast.message import Message

    interface, member = method
    message = Message(
        destination=name, path=path, interface=interface, member=member,
        signature=signature, body=list(arguments),
    )  # fmt: skip
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            reply = await bus.call(message)
    except TimeoutError:
        raise BusError(f"{name} does not answer") from None
    except Exception as error:
        raise BusError(f"{member} of {name}: {error!r}") from error
    if reply.message_type is MessageType.ERROR:
        raise BusError(f"{member} of {name}: {reply.error_name}: {str(reply.body)[:200]}")
    body: list[Any] = reply.body
    return body
