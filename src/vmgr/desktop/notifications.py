"""Notifications, as the Desktop Notifications Specification 1.2 has them.

Few and useful: what is of one kind about one thing replaces what was said before, a burst is cut
off and told as one sentence, and where there is no desktop nothing happens. Texts may come from a
machine: they are bounded, and no markup of theirs is ever interpreted.
"""

from __future__ import annotations

import asyncio
import html
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from vmgr.desktop.bus import BusError, SessionBus
from vmgr.identity import APP_ID, APP_NAME
from vmgr.identity.files import SHARE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Action", "Notification", "Notifications", "plain"]

_SERVICE: Final = "org.freedesktop.Notifications"
_PATH: Final = "/org/freedesktop/Notifications"
_URGENCY: Final = {"low": 0, "normal": 1, "critical": 2}
_TITLE, _TEXT = 100, 500  # characters
_WAITING: Final = 32
_KEPT: Final = 64
_ROUNDING: Final = 1e-6
BURST: Final = 5
"""How many come one after the other."""
REFILL: Final = 20.0
"""Seconds after which another one may come."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Action:
    """Something that a notification offers to do."""

    label: str
    do: Callable[[], object]
    """Called in the loop when the person chooses it; returns at once."""


@dataclass(frozen=True)
class Notification:
    """What is shown to the person."""

    kind: str
    """What it is about, with `about`: a later one of the same replaces it."""
    title: str
    text: str = ""
    about: str = ""
    urgency: Literal["low", "normal", "critical"] = "normal"
    actions: tuple[Action, ...] = ()


class Notifications:
    """Shows notifications while `run` runs.

    Args:
        bus: where the desktop is.
        wanted: whether the person wants to see any.
        refill: see `REFILL`.
    """

    def __init__(
        self,
        bus: SessionBus,
        wanted: Callable[[], Awaitable[bool]],
        *,
        refill: float = REFILL,
    ) -> None:
        self._bus = bus
        self._wanted = wanted
        self._refill = refill
        self._waiting: OrderedDict[tuple[str, str], Notification] = OrderedDict()
        self._lost = 0
        self._came = asyncio.Event()
        self._shown: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._offered: OrderedDict[int, tuple[Action, ...]] = OrderedDict()
        self._early: list[tuple[int, str]] | None = None
        """While one is being shown: what was chosen of numbers that are not known yet."""
        self._connection = 0
        """Which of the bus's connections the numbers above are of."""
        self._can: frozenset[str] = frozenset()
        self._allowed = float(BURST)
        self._since = asyncio.get_running_loop().time()
        bus.on_signal(_SERVICE, self._heard)

    def notify(self, notification: Notification) -> None:
        """Show a notification, soon; returns at once and never fails."""
        key = (notification.kind, notification.about)
        if key not in self._waiting and len(self._waiting) >= _WAITING:
            self._lost += 1
            return
        self._waiting[key] = notification
        self._came.set()

    async def run(self) -> NoReturn:
        """Show what comes, until cancelled."""
        loop = asyncio.get_running_loop()
        held_back = False
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                if (left := self._until_allowed(loop.time())) > 0:
                    held_back = True
                    loop.call_later(left, self._came.set)
                    break
                self._allowed -= 1
                await self._next(together=held_back)
                held_back = False

    # -- machinery -------------------------------------------------------------------------------

    def _until_allowed(self, now: float) -> float:
        """Seconds until another one may be shown."""
        self._allowed = min(BURST, self._allowed + (now - self._since) / self._refill)
        self._since = now
        # Sums of small parts: what is due must not be a moment away for ever.
        return max(0.0, (1 - _ROUNDING - self._allowed) * self._refill)

    async def _next(self, *, together: bool) -> None:
        """Show what comes next, or all that there is as one sentence."""
        many = len(self._waiting) + self._lost
        if together and many > 1:
            latest = next(reversed(self._waiting.values()))
            self._waiting.clear()
            self._lost = 0
            notification = Notification(
                "many",
                f"{many} messages about your machines",
                f"The latest: {latest.title}\nAll of them: vmgr events --since 0",
            )
        else:
            _, notification = self._waiting.popitem(last=False)
        if not await self._wanted():
            return
        try:
            await self._show(notification)
        except BusError as error:
            self._bus.want()
            log.info("not shown: %s (%s)", notification.title, error)

    async def _show(self, notification: Notification) -> None:
        if self._connection != self._bus.connections:
            self._shown.clear()
            self._offered.clear()
            (capabilities,) = await self._bus.call(_SERVICE, _PATH, "GetCapabilities")
            self._can = frozenset(map(str, capabilities))
            self._connection = self._bus.connections
        from dbus_fast.signature import Variant

        key = (notification.kind, notification.about)
        actions = notification.actions if "actions" in self._can else ()
        offered = [text for n, a in enumerate(actions) for text in (str(n), plain(a.label, 40))]
        text = plain(notification.text, _TEXT)
        if "body-markup" in self._can:
            text = html.escape(text, quote=False)
        icon = SHARE / f"icons/hicolor/scalable/apps/{APP_ID}.svg"
        hints = {
            "desktop-entry": Variant("s", APP_ID),
            "urgency": Variant("y", _URGENCY[notification.urgency]),
            "category": Variant("s", "device"),
            # By file, since nobody may have installed it where icons are looked for by name.
            "image-path": Variant("s", icon.as_uri()),
        }
        self._early = []
        try:
            (number,) = await self._bus.call(
                _SERVICE, _PATH, "Notify", "susssasa{sv}i",
                APP_NAME, self._shown.get(key, 0), APP_ID, plain(notification.title, _TITLE), text,
                offered, hints, -1,
            )  # fmt: skip
        finally:
            early, self._early = self._early, None
        self._shown[key] = number
        self._offered.pop(number, None)
        if actions:
            self._offered[number] = actions
        for chosen in early:
            self._chosen(*chosen)
        while len(self._shown) > _KEPT:
            self._shown.popitem(last=False)
        while len(self._offered) > _KEPT:
            self._offered.popitem(last=False)

    def _heard(self, member: str, arguments: list[Any]) -> None:
        if not arguments or not isinstance(number := arguments[0], int):
            return
        if member == "ActionInvoked" and len(arguments) == 2:  # noqa: PLR2004 (its signature, us)
            self._chosen(number, str(arguments[1]))
        elif member == "NotificationClosed":
            self._offered.pop(number, None)
            for key in [key for key, shown in self._shown.items() if shown == number]:
                del self._shown[key]

    def _chosen(self, number: int, action: str) -> None:
        actions = self._offered.get(number)
        if actions is None:
            # The answer to our call and the signal may have come in one piece.
            if self._early is not None and len(self._early) < _KEPT:
                self._early.append((number, action))
        elif action.isascii() and action.isdigit() and int(action) < len(actions):
            actions[int(action)].do()


def plain(text: str, longest: int) -> str:
    """A text without what is not to be seen, cut off at `longest` characters."""
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
