"""Asking the person through polkit: the dialog of their desktop, answered there and nowhere else.

polkit says no more in its dialog than the action's own text, unless who asks is trusted to add to
it: root, or the action's owner. So the action is installed for one person (`vmgr authorize
--polkit-policy` prints the file), as the owner of whose questions it then names machine and
command. Where it is not installed, where there is no system bus or nobody's session has an agent of
polkit's, polkit gives no answer and terminals are asked.

Never for root, whom polkit permits everything unasked.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

    from vmgr.api.hostcommands import Question
    from vmgr.desktop.thread import BusThread

__all__ = ["Polkit"]

_AUTHORITY: Final = "org.freedesktop.PolicyKit1"
_PATH: Final = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE: Final = "org.freedesktop.PolicyKit1.Authority"
_INTERACTIVE: Final = 1
_CONNECT_WITHIN: Final = 5.0
_DISMISSED: Final = "polkit.dismissed"

log = logging.getLogger(__name__)


class Polkit:
    """An `Agent` that asks polkit.

    Args:
        thread: where the D-Bus library runs.
        address: the system bus; None: where it is on this computer.
    """

    def __init__(self, thread: BusThread, address: str | None = None) -> None:
        self._thread = thread
        self._address = address
        self._said = ""

    async def ask(self, question: Question, action: str) -> bool | None:
        """The person's answer; None: polkit has none."""
        if os.getuid() == 0:
            return None
        answer, problem = await self._thread.run(self._ask(question, action))
        if problem is not None and problem != self._said:
            self._said = problem
            log.info("polkit is not asked: %s", problem[:300])
        return answer

    async def _ask(self, question: Question, action: str) -> tuple[bool | None, str | None]:
        """The answer, or why there is none."""
        try:
            bus = await self._connect()
            try:
                return await self._check(bus, question, action)
            finally:
                # polkit drops the question, and its dialog, when who asked has left the bus.
                bus.disconnect()
        except Exception as error:  # noqa: BLE001 (no bus, one that dies or speaks strangely)
            return None, repr(error)

    async def _connect(self) -> MessageBus:
        from dbus_fast.aio import MessageBus
        from dbus_fast.constants import BusType

        async with asyncio.timeout(_CONNECT_WITHIN):
            return await MessageBus(bus_address=self._address, bus_type=BusType.SYSTEM).connect()

    async def _check(
        self, bus: MessageBus, question: Question, action: str
    ) -> tuple[bool | None, str | None]:
        from dbus_fast import Message, Variant
        from dbus_fast.constants import MessageType

        subject = ["system-bus-name", {"name": Variant("s", bus.unique_name)}]
        details = {"machine": question.machine, "command": question.detail}
        answer = await bus.call(
            Message(
                destination=_AUTHORITY,
                path=_PATH,
                interface=_INTERFACE,
                member="CheckAuthorization",
                signature="(sa{sv})sa{ss}us",
                body=[subject, action, details, _INTERACTIVE, ""],
            )
        )
        if answer is None or answer.message_type is not MessageType.METHOD_RETURN:
            return None, "no answer" if answer is None else f"{answer.error_name}: {answer.body}"
        ((authorized, challenge, details),) = answer.body
        if not authorized and challenge and _DISMISSED not in details:
            return None, "nobody's session has an agent of polkit's"
        return authorized, None
