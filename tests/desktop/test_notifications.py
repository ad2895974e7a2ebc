from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import short_directory
from tests.desktop.desktop import Daemon, Desktop, needs_bus

from vmgr.desktop import Action, Notification, Notifications, SessionBus
from vmgr.desktop.bus import BusError, addresses_of
from vmgr.desktop.notifications import BURST, plain
from vmgr.identity import APP_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = needs_bus


@pytest.fixture
def place() -> Iterator[Path]:
    directory = short_directory()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def daemon(place: Path) -> Iterator[Daemon]:
    daemon = Daemon(place / "bus")
    yield daemon
    daemon.kill()


async def yes() -> bool:
    return True


@contextlib.asynccontextmanager
async def running(bus: SessionBus, *more: Notifications) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one.run()) for one in (bus, *more)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results), results


async def until(holds: Callable[[], object]) -> None:
    """Ask until it is so: it has no event that a test could wait for."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 (said above)
            await asyncio.sleep(0)


async def connected(bus: SessionBus, number: int = 1) -> None:
    await until(lambda: bus.want() or (bus.connected and bus.connections >= number))


def session(place: Path, look_every: float = 30) -> SessionBus:
    return SessionBus({"XDG_RUNTIME_DIR": str(place)}, look_every)


async def test_it_is_shown_as_ours_and_its_action_is_done(daemon: Daemon, place: Path) -> None:
    async with Desktop(daemon) as desktop:
        bus = session(place)
        notifications = Notifications(bus, yes)
        async with running(bus, notifications):
            await connected(bus)
            done = asyncio.Event()
            told = Notification(
                "crash", "web has crashed", "<b>it</b> & \x1b[31m", about="web",
                urgency="critical", actions=(Action("Show log", done.set),),
            )  # fmt: skip
            notifications.notify(told)
            shown = await desktop.next()
            assert (shown["app"], shown["icon"]) == ("vmgr", APP_ID)
            assert shown["hints"]["desktop-entry"].value == APP_ID
            assert shown["hints"]["urgency"].value == 2
            assert shown["hints"]["image-path"].value.endswith(f"{APP_ID}.svg")
            assert shown["text"] == "&lt;b&gt;it&lt;/b&gt; &amp; \N{REPLACEMENT CHARACTER}[31m"
            assert shown["actions"] == ["0", "Show log"]
            for number, action in ((999, "0"), (shown["number"], "7"), (shown["number"], "x")):
                desktop.choose(number, action)
            assert not done.is_set()
            desktop.choose(shown["number"], "0")
            async with asyncio.timeout(30):
                await done.wait()
            desktop.close(shown["number"])
            await until(lambda: not notifications._shown)
            notifications.notify(told)
            assert (await desktop.next())["replaces"] == 0, "there is nothing to replace"


async def test_one_of_the_same_kind_replaces_the_earlier(daemon: Daemon, place: Path) -> None:
    async with Desktop(daemon, ("body",)) as desktop:
        bus = session(place)
        notifications = Notifications(bus, yes)
        async with running(bus, notifications):
            await connected(bus)
            action = Action("no", lambda: None)
            notifications.notify(Notification("port", "one", "a<b", "web", actions=(action,)))
            first = await desktop.next()
            assert first["actions"] == [], "this desktop knows none"
            assert first["text"] == "a<b", "nor markup"
            notifications.notify(Notification("port", "other", about="db"))
            other = await desktop.next()
            assert other["replaces"] == 0
            notifications.notify(Notification("port", "two", about="web"))
            assert (await desktop.next())["replaces"] == first["number"]


async def test_a_burst_is_cut_off_and_told_in_one(daemon: Daemon, place: Path) -> None:
    async with Desktop(daemon) as desktop:
        bus = session(place)
        notifications = Notifications(bus, yes, refill=0.3)
        async with running(bus, notifications):
            await connected(bus)
            for number in range(1_000):
                notifications.notify(Notification("host", f"n{number}", about=str(number)))
            titles = [(await desktop.next())["title"] for _ in range(BURST + 1)]
            assert titles[:BURST] == [f"n{number}" for number in range(BURST)]
            assert titles[BURST] == f"{1_000 - BURST} messages about your machines"
            notifications.notify(Notification("host", "later"))
            assert (await desktop.next())["title"] == "later"
            assert desktop.shown.empty()


async def test_who_wants_none_sees_none(daemon: Daemon, place: Path) -> None:
    answers = iter([False, True])

    async def wanted() -> bool:
        return next(answers)

    async with Desktop(daemon) as desktop:
        bus = session(place)
        notifications = Notifications(bus, wanted)
        async with running(bus, notifications):
            await connected(bus)
            notifications.notify(Notification("a", "unwanted"))
            notifications.notify(Notification("b", "wanted"))
            assert (await desktop.next())["title"] == "wanted"


async def test_a_bus_that_dies_and_comes_back(daemon: Daemon, place: Path) -> None:
    bus = session(place)
    notifications = Notifications(bus, yes)
    async with running(bus, notifications):
        await connected(bus)
        with pytest.raises(BusError, match="ServiceUnknown"):  # nobody shows any
            await bus.call("org.freedesktop.Notifications", "/x", "GetCapabilities")
        asking = asyncio.create_task(bus.call("org.freedesktop.DBus", "/", "ListNames"))
        daemon.kill()
        with contextlib.suppress(BusError):  # or it was quicker
            await asking
        notifications.notify(Notification("a", "lost"))
        await until(lambda: not bus.connected)
        with pytest.raises(BusError, match="no session bus"):
            await bus.call("org.freedesktop.DBus", "/", "ListNames")
        (place / "bus").unlink()
        again = Daemon(place / "bus")
        try:
            async with Desktop(again) as desktop:
                await connected(bus, 2)
                notifications.notify(Notification("a", "told"))
                while (await desktop.next())["title"] != "told":
                    pass
        finally:
            again.kill()


@pytest.mark.parametrize(
    "said",
    [b"", b"ERROR\r\n", b"REJECTED\r\n", b"OK 1234\r\n" + b"\xff" * 5_000, b"x" * 100_000],
    ids=["nothing", "error", "rejected", "garbage", "flood"],
)
async def test_what_is_no_bus_disturbs_nobody(place: Path, said: bytes) -> None:
    accepted = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(said)
            await writer.drain()
        writer.close()
        accepted.set()

    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    server = await asyncio.start_unix_server(answer, place / "bus")
    bus = session(place, 0.01)
    async with server, running(bus):
        async with asyncio.timeout(30):
            await accepted.wait()
            accepted.clear()
            await accepted.wait()  # it was tried again
        assert not bus.connected
    assert problems == []


async def test_without_a_bus_nothing_happens(place: Path) -> None:
    looks: list[str] = []

    class Environment(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            looks.append(name)
            return super().get(name, default)

    bus = SessionBus(Environment(XDG_RUNTIME_DIR=str(place)), 0.01)
    notifications = Notifications(bus, yes)
    async with running(bus, notifications):
        notifications.notify(Notification("a", "nobody sees it"))
        await until(lambda: len(looks) > 10)
        assert not bus.connected


def test_where_the_bus_is(place: Path) -> None:
    assert addresses_of({}) == []
    assert addresses_of({"XDG_RUNTIME_DIR": str(place)}) == []
    told = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/x", "XDG_RUNTIME_DIR": str(place)}
    assert addresses_of(told) == ["unix:path=/x"]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "bus"))
        assert addresses_of(told) == ["unix:path=/x", f"unix:path={place}/bus"]
        told["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={place}/bus"
        assert addresses_of(told) == [f"unix:path={place}/bus"]


async def test_the_bus_of_a_session_that_has_ended(daemon: Daemon, place: Path) -> None:
    for told in (f"unix:path={place}/gone", "nonsense", "tcp:host=,port=x"):
        bus = SessionBus({"DBUS_SESSION_BUS_ADDRESS": told, "XDG_RUNTIME_DIR": str(place)})
        async with running(bus):
            await connected(bus)
    assert daemon.address == f"unix:path={place}/bus"


def test_texts_are_bounded() -> None:
    assert plain("a\nb\x00\u202ec", 10) == "a\nb\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c"
    assert plain("x" * 1_000, 5) == "xxxx\N{HORIZONTAL ELLIPSIS}"
