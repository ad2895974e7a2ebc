"""A real polkit on a bus of its own, in a mount namespace of its own; asked by an ordinary user.

polkit permits root everything, so who asks is another user: a process that becomes one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dbus_fast import Message
from dbus_fast.aio import MessageBus
from tests.conftest import kill_and_wait, short_directory

from vmgr.authorization.policy import HOST_COMMAND, OPENING, policy

if TYPE_CHECKING:
    from collections.abc import Iterator

POLKITD = Path("/usr/lib/polkit-1/polkitd")
UID, OTHER = 65_534, 1  # nobody and daemon: the bus looks users up
needs_polkit = pytest.mark.skipif(
    os.getuid() != 0 or not POLKITD.exists() or shutil.which("dbus-daemon") is None,
    reason="needs root and Debian's polkitd",
)

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>
"""
RULES = """
polkit.addRule(function(action, subject) {{
  if (action.id != "{action}") return;
  if (action.lookup("command") == "unknown") return;
  return action.lookup("machine") == "web" && action.lookup("command") == "git push"
    ? polkit.Result.YES : polkit.Result.NO;
}});
"""
# The rules and the action are seen in this namespace alone.
START = """
mount --make-rprivate /
mount -t tmpfs none /usr/share/polkit-1/actions && mount -t tmpfs none /etc/polkit-1/rules.d &&
cp "$1/action" /usr/share/polkit-1/actions/vmgr.policy &&
cp "$1/rules" /etc/polkit-1/rules.d/1.rules && chmod -R a+rX /etc/polkit-1/rules.d &&
exec "$2" --replace
"""
ASK = """
import asyncio, logging, os, sys
import concurrent.futures.thread, dbus_fast.aio, dbus_fast.constants  # while they can be read
logging.basicConfig(level=logging.INFO)
from vmgr.api.hostcommands import Question
from vmgr.authorization.polkit import Polkit
from vmgr.desktop.thread import BusThread
question = Question(id=1, machine=sys.argv[2], title="t", detail=sys.argv[3], seconds=60)
uid = int(sys.argv[4])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
print(asyncio.run(Polkit(BusThread(), sys.argv[1]).ask(question, sys.argv[5])))
"""


async def polkit_on(address: str) -> None:
    """Wait until polkit is on the bus."""
    bus = await MessageBus(bus_address=address).connect()
    there = asyncio.Event()
    bus.add_message_handler(
        lambda message: there.set() if "org.freedesktop.PolicyKit1" in message.body else None
    )
    dbus = "org.freedesktop.DBus"
    for member, signature, body in (
        ("AddMatch", "s", [f"type='signal',sender='{dbus}',member='NameOwnerChanged'"]),
        ("NameHasOwner", "s", ["org.freedesktop.PolicyKit1"]),
    ):
        reply = await bus.call(Message(dbus, "/", dbus, member, signature=signature, body=body))
    if reply is None or reply.body != [True]:
        async with asyncio.timeout(30):
            await there.wait()
    bus.disconnect()


@pytest.fixture(scope="module")
def bus() -> Iterator[str]:
    """The address of a bus with polkit on it."""
    directory = short_directory()
    directory.chmod(0o755)
    address = f"unix:path={directory}/bus"
    (directory / "bus.conf").write_text(BUS.format(path=directory / "bus"))
    (directory / "action").write_text(policy(UID))
    (directory / "rules").write_text(RULES.format(action=HOST_COMMAND))
    started: list[subprocess.Popen[bytes]] = []
    read, write = os.pipe()
    try:
        command = ["dbus-daemon", "--nofork", f"--config-file={directory}/bus.conf"]
        started.append(
            subprocess.Popen(
                [*command, f"--print-address={write}"], pass_fds=[write], stderr=subprocess.DEVNULL
            )
        )
        os.close(write)
        assert os.read(read, 1_000)  # it listens
        started.append(
            subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", START, "sh", str(directory), str(POLKITD)],
                env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        asyncio.run(polkit_on(address))
        yield address
    finally:
        os.close(read)
        for process in reversed(started):
            kill_and_wait(process.pid)
            process.wait()
        shutil.rmtree(directory)


def ask(
    address: str, machine: str, command: str, uid: int = UID, action: str = HOST_COMMAND
) -> tuple[str, str]:
    """What polkit said, and what the log says of it."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, address, machine, command, str(uid), action],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip(), done.stderr


@needs_polkit
def test_polkit_decides_by_what_is_asked(bus: str) -> None:
    assert ask(bus, "web", "git push") == ("True", "")
    assert ask(bus, "db", "git push") == ("False", "")
    assert ask(bus, "web", "rm -rf /") == ("False", "")
    # Another action of ours, about which its rules say nothing: an agent would have to ask.
    said, log = ask(bus, "web", "git push", action=OPENING)
    assert (said, "has an agent" in log) == ("None", True)


@needs_polkit
def test_without_an_agent_there_is_no_answer(bus: str) -> None:
    said, log = ask(bus, "web", "unknown")
    assert (said, "has an agent" in log) == ("None", True)


@needs_polkit
def test_others_than_the_actions_owner_are_not_answered(bus: str) -> None:
    # polkit would not name machine and command to them.
    said, log = ask(bus, "web", "git push", uid=OTHER)
    assert (said, "trusted callers" in log) == ("None", True)


@needs_polkit
def test_root_is_never_answered(bus: str) -> None:
    assert ask(bus, "web", "git push", uid=0) == ("None", "")


def hang_up(listening: socket.socket) -> None:
    """Be a bus that dies with what was asked of it."""
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        with client:
            client.recv(100)


@pytest.mark.parametrize("dying", [False, True])
def test_without_a_bus_there_is_no_answer(tmp_path: Path, *, dying: bool) -> None:
    text = ASK.replace("os.setgroups([]); ", "").replace("os.setresgid(uid, uid, uid); ", "")
    text = text.replace("os.setresuid(uid, uid, uid)", "os.getuid = lambda: 1")
    with socket.socket(socket.AF_UNIX) as listening:
        if dying:
            listening.bind(str(tmp_path / "bus"))
            listening.listen(8)
            threading.Thread(target=hang_up, args=(listening,), daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-c", text, f"unix:path={tmp_path}/bus", "web", "x", "1", "a"],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        if dying:
            listening.shutdown(socket.SHUT_RDWR)
    assert done.stdout == "None\n"
    assert done.stderr.count("polkit is not asked") == 1
    assert "Traceback" not in done.stderr


def test_the_action_names_its_owner_and_always_asks() -> None:
    actions = list(ET.fromstring(policy(1_000)).iter("action"))  # noqa: S314 (ours)
    assert [action.get("id") for action in actions] == [HOST_COMMAND, OPENING]
    for action in actions:
        assert {e.text for e in action.find("defaults") or ()} == {"auth_self"}
        assert action.findtext("annotate") == "unix-user:1000"


# The desktop's part: an agent of polkit's in the session of who asks. It shows the dialog; a helper
# of root's (here: a connection that was made as root) says that the password was right.
WITH_AGENT = """
import asyncio, os, sys
import concurrent.futures.thread, dbus_fast.aio, dbus_fast.constants
from dbus_fast import Message, Variant
from dbus_fast.aio import MessageBus
from vmgr.api.hostcommands import Question
from vmgr.authorization.polkit import Polkit
from vmgr.desktop.thread import BusThread
address, uid, agrees = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "yes"
NAME, PATH = "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority"
def call(bus, member, signature, *body):
    return bus.call(Message(NAME, PATH, NAME + ".Authority", member, signature=signature,
                            body=list(body)))
async def main():
    root = await MessageBus(bus_address=address).connect()
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    session = await MessageBus(bus_address=address).connect()
    async def dialog(message):
        print(message.body[1])
        if agrees:
            user = ["unix-user", {"uid": Variant("u", uid)}]
            member, kinds = "AuthenticationAgentResponse2", "us(sa{sv})"
            await call(root, member, kinds, uid, message.body[4], user)
            await session.send(Message.new_method_return(message))
        else:
            await session.send(Message.new_error(message, NAME + ".Error.Cancelled", "no"))
    tasks = []
    def heard(message):
        if message.member == "BeginAuthentication":
            tasks.append(asyncio.create_task(dialog(message)))
            return True
    session.add_message_handler(heard)
    started = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    me = ["unix-process", {"pid": Variant("u", os.getpid()), "start-time": Variant("t", started)}]
    member, kinds = "RegisterAuthenticationAgent", "(sa{sv})ss"
    reply = await call(session, member, kinds, me, "C.UTF-8", "/agent")
    print(reply.error_name, reply.body, file=sys.stderr)
    question = Question(id=1, machine="web", title="t", detail="unknown", seconds=60)
    print(await Polkit(BusThread(), address).ask(question, sys.argv[-1]))
asyncio.run(main())
"""


DIALOG = "Machine web wants to run a command on this computer, as you: unknown"


@needs_polkit
@pytest.mark.parametrize(
    ("agrees", "said", "action", "asked"),
    [
        ("yes", "True", HOST_COMMAND, DIALOG),
        ("no", "False", HOST_COMMAND, DIALOG),
        ("yes", "True", OPENING, "unknown?"),
    ],
)
def test_the_dialog_names_machine_and_command(
    bus: str, agrees: str, said: str, action: str, asked: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITH_AGENT, bus, str(UID), agrees, action],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == [asked, said], done.stderr
