"""Commands of a machine's on this computer: real ones, from a real machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import pwd
import re
import select
import signal
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.conftest import SMALL, Home, wait_for_end

from vmgr.agent.frames import FrameType, encode_frame
from vmgr.userenv import capture

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.vm
OFF = b"may run nothing on its host"


@pytest.fixture(scope="module")
def hosts(quick_module_home: Home) -> Home:
    """A home with a machine `web` that may run everything."""
    home = quick_module_home
    home.vmgr(
        "create", "web", *SMALL, "--image", "debian-minimal", "--host-commands", "all", "--start"
    )
    return home


@pytest.fixture
def web(hosts: Home) -> Iterator[Home]:
    """The same, as at the beginning."""
    yield hosts
    hosts.vmgr("host-commands", "web", "all")


def host(home: Home, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """What `host` did in the machine."""
    return home.vmgr("exec", *(["-i"] if "stdin" in options else []), "web", "--", "host", *words,
                     check=False, **options)  # fmt: skip


def script(home: Home, text: str) -> str:
    return home.vmgr("exec", "web", "--", "sh", "-c", text).stdout.decode()


class Terminal:
    """A `vmgr` on a terminal of its own."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self._fd, slave = pty.openpty()
        self.process = home.start(
            *arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.said = b""

    def until(self, pattern: bytes) -> re.Match[bytes]:
        """Read on until `pattern` comes; what was read before it is gone."""
        end = time.monotonic() + 60
        while (found := re.search(pattern, self.said)) is None:
            assert select.select([self._fd], [], [], end - time.monotonic())[0], self.said
            try:
                self.said += os.read(self._fd, 65_536)
            except OSError:
                pytest.fail(f"it ended and had said {self.said!r}")
        self.said = self.said[found.end() :]
        return found

    def type(self, text: bytes) -> None:
        os.write(self._fd, text)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        os.close(self._fd)
        self.process.wait(30)


@pytest.fixture
def terminal(web: Home) -> Iterator[Any]:
    with contextlib.ExitStack() as opened:

        def make(*arguments: str) -> Terminal:
            made = Terminal(web, *arguments)
            opened.callback(made.close)
            return made

        yield make


# -- running -----------------------------------------------------------------------------


def test_streams_directory_environment_and_code(web: Home) -> None:
    done = host(web, "sh", "-c", 'cat; pwd; echo "$VMGR_MACHINE" >&2; exit 3', stdin=b"in\n")
    assert done.stdout.splitlines()[0] == b"in"
    assert done.stdout.splitlines()[1].decode() == pwd.getpwuid(os.getuid()).pw_dir
    assert (done.stderr, done.returncode) == (b"web\n", 3)


def test_it_runs_as_the_person_would(web: Home) -> None:
    done = host(
        web, "sh", "-c", "umask; id -u; ls /proc/$$/fd; cut -d' ' -f6 /proc/$$/stat; echo $$"
    )
    umask, uid, *fds, session, pid = done.stdout.decode().split()
    assert int(umask, 8) == asyncio.run(capture()).umask
    assert (int(uid), session) == (os.getuid(), pid)
    assert fds == ["0", "1", "2"]


def test_much_data_and_arguments_of_any_kind(web: Home) -> None:
    text = "head -c 3000000 /dev/zero | host md5sum; host head -c 3000000 /dev/zero | md5sum"
    one, two = script(web, text).splitlines()
    assert one == two
    assert host(web, "printf", "%s|", "a b", "$(id)", "*", "\\").stdout == b"a b|$(id)|*|\\|"


def test_a_terminal_and_signals(terminal: Any) -> None:
    there = terminal(
        "exec", "-t", "web", "--", "host", "sh", "-c",
        "trap 'stty size; exit 5' INT; echo re''ady; while :; do sleep 0.02; done",
    )  # fmt: skip
    there.until(b"ready")
    there.type(b"\x03")
    there.until(rb"\d+ \d+")
    assert there.process.wait(30) == 5


def test_what_is_not_there_is_said(web: Home) -> None:
    done = host(web, "no-such-thing")
    assert (done.stderr, done.returncode) == (
        b"host: there is no command no-such-thing on the host\n",
        127,
    )
    done = host(web, "/bin/true")
    assert (b"a path is not run" in done.stderr, done.returncode) == (True, 125)
    assert host(web).returncode == 2
    assert b"desktop" in host(web, "paste").stderr


def test_who_goes_takes_its_command_along(web: Home) -> None:
    client = web.start("exec", "web", "--", "host", "sh", "-c", "echo $$; exec sleep 1000")
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    client.kill()
    client.communicate()
    wait_for_end(pid)


def test_each_use_is_told(web: Home) -> None:
    since = web.last_event()
    host(web, "sh", "-c", "exit 4")
    event = web.wait_for_event("host-command", since)
    assert event["data"] == {"command": "sh -c 'exit 4'", "outcome": "exited with 4"}
    assert event["machine"] == "web"


# -- who may -----------------------------------------------------------------------------


def test_none_is_what_a_machine_begins_with_and_can_come_back_to(web: Home) -> None:
    web.vmgr("create", "other", *SMALL, "--image", "debian-minimal")
    assert web.json("info", "other")["host_commands"] == {"mode": "none", "allow": []}
    web.vmgr("rm", "other")
    web.vmgr("host-commands", "web", "none")
    assert script(web, "command -v host; ls /run/vmgr; ls /usr/local/bin; true") == ""
    web.vmgr("host-commands", "web", "all")
    assert host(web, "true").returncode == 0


def test_a_copy_may_nothing_though_it_has_the_door(web: Home) -> None:
    web.vmgr("fork", "web", "copy")
    done = web.vmgr("exec", "copy", "--", "host", "true", check=False)
    assert (OFF in done.stderr, done.returncode) == (True, 125)
    web.vmgr("rm", "-f", "copy")


def test_a_list_holds_names(web: Home) -> None:
    web.vmgr("host-commands", "web", "list", "--allow", "true")
    assert host(web, "true").returncode == 0
    since = web.last_event()
    done = host(web, "id")
    assert (b"not on the list" in done.stderr, done.returncode) == (True, 125)
    assert web.wait_for_event("host-command", since)["data"]["outcome"].startswith("refused")
    assert b"not on the list" in host(web, "open", "https://example.org").stderr
    web.vmgr("host-commands", "web", "--disallow", "true")
    assert host(web, "true").returncode == 125


def test_other_users_of_the_machine_may_not(web: Home) -> None:
    done = web.vmgr("exec", "-u", "nobody", "web", "--", "host", "true", check=False)
    assert (b"only root and" in done.stderr, done.returncode) == (True, 125)


# -- asking ------------------------------------------------------------------------------


def test_nobody_is_there_to_be_asked(web: Home) -> None:
    web.vmgr("host-commands", "web", "ask")
    done = host(web, "true")
    assert (b"vmgr authorize" in done.stderr, done.returncode) == (True, 125)


def test_a_person_is_asked_at_a_terminal(web: Home, terminal: Any) -> None:
    web.vmgr("host-commands", "web", "ask", "--allow", "date")
    there = terminal("authorize")
    there.until(b"waiting")
    assert host(web, "date").returncode == 0  # on the list
    asking = web.start("exec", "web", "--", "host", "echo", "a\x1b[2J b")
    there.until(rb"Machine web wants to run a command")
    there.until(rb"echo 'a\\x1b\[2J b'")
    code = there.until(rb"Type (\w{4}) and Enter")[1]
    there.type(code + b"\n")
    assert asking.communicate(timeout=60)[0] == b"a\x1b[2J b\n"
    asking = web.start("exec", "web", "--", "host", "true")
    there.until(rb"Type (\w{4}) and Enter")
    there.type(code + b"\n")  # that of another question
    there.until(b"refused")
    assert b"did not allow" in asking.communicate(timeout=60)[1]
    assert asking.returncode == 125


def test_a_shells_terminal_asks_and_the_machine_cannot_answer(web: Home, terminal: Any) -> None:
    web.vmgr("host-commands", "web", "ask")
    # It talks on and on, and reads: neither is seen or given anything while the question stands.
    there = terminal(
        "exec", "-t", "web", "--", "sh", "-c",
        "(while :; do echo noise; sleep 0.01; done) & host echo yes-it-ran; kill $!; read l; echo "
        '"[$l]"',
    )  # fmt: skip
    there.until(rb"Type (\w{4}) and Enter.*: ")
    assert not there.said
    there.type(b"y\n")
    there.until(b"refused")
    there.until(b"did not allow")
    there.type(b"typed\n")
    there.until(rb"\[typed\]")
    assert there.process.wait(30) == 0
    there = terminal("exec", "-t", "web", "--", "host", "echo", "yes-it-ran")
    code = there.until(rb"Type (\w{4}) and Enter.*: ")[1]
    assert not select.select([there._fd], [], [], 0)[0]
    there.type(code + b"\n")
    there.until(b"yes-it-ran")
    assert there.process.wait(30) == 0


# -- hostile machines --------------------------------------------------------------------

FLOOD = r"""
use strict; use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE';
my ($count) = @ARGV; my (@open, %said);
open my $file, '<', '/flood.data'; binmode $file; my $bytes = do { local $/; <$file> };
for (1 .. $count) {
  my $s = IO::Socket::UNIX->new(Peer => '/run/vmgr/host.sock') or next;
  syswrite $s, $bytes; push @open, $s;
}
for my $s (@open) {
  my $all = '';
  while (sysread $s, my $part, 4096) { $all .= $part; last if length $all > 12 }
  $said{ord substr $all . "\0\0\0\0\0", 4, 1}++;
}
print join(' ', map { "$_=$said{$_}" } sort keys %said), "\n";
"""


def flood(home: Home, count: int, data: bytes) -> dict[int, int]:
    """Call the host often; how many got which kind of frame as their first answer."""
    for name, content in (("pl", FLOOD.encode()), ("data", data)):
        home.vmgr("exec", "-i", "web", "--", "sh", "-c", f"cat > /flood.{name}", stdin=content)
    said = script(home, f"perl /flood.pl {count}")
    return {int(kind): int(number) for kind, number in (one.split("=") for one in said.split())}


def test_a_thousand_asks_are_few_questions(web: Home) -> None:
    web.vmgr("host-commands", "web", "ask")
    since = web.last_event()
    request = msgspec.msgpack.encode({"verb": "run", "argv": [b"true"]})
    said = flood(web, 1_000, encode_frame(FrameType.OPEN, request, channel=1))
    assert said == {FrameType.ERROR: 1_000}
    web.wait_for_event("host-command", since)
    events = [line for line in events_of(web) if b'"host-command"' in line]
    assert len(events) < 700
    web.vmgr("host-commands", "web", "all")
    assert host(web, "true").returncode == 0


def events_of(home: Home) -> list[bytes]:
    """All events that are kept."""
    marker = home.last_event()
    home.vmgr("host-commands", "web", "ask")
    with home.start("events", "--json", "--since", "0") as following:
        assert following.stdout is not None
        lines = []
        for line in following.stdout:
            lines.append(line)
            event = msgspec.json.decode(line)
            if event["kind"] == "host-commands.changed" and event["at"] * 1e6 > marker:
                break
        following.kill()
    return lines


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 4_000, encode_frame(FrameType.OPEN, b"\x91" * 60_000, channel=1),
     encode_frame(FrameType.OPEN, b"\x80", channel=1) * 10],
    ids=["noise", "nested", "twice"],
)  # fmt: skip
def test_lies_end_one_call(web: Home, data: bytes) -> None:
    before = web.helper_pid()
    flood(web, 3, data)
    assert host(web, "true").returncode == 0
    assert web.helper_pid() == before


def test_another_helper_takes_calls_again(web: Home) -> None:
    client = web.start("exec", "web", "--", "host", "sh", "-c", "echo $$; exec sleep 1000")
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    web.kill_helper()
    wait_for_end(pid)
    assert host(web, "echo", "again").stdout == b"again\n"
    client.communicate(timeout=60)
    assert client.returncode == 125


def test_the_persons_account_may_call(hosts: Home) -> None:
    options = ("--user", "dev", "--host-commands", "all")
    hosts.vmgr("create", "named", *SMALL, "--image", "debian-minimal", *options, "--start")
    try:
        done = hosts.vmgr("exec", "named", "--", "sh", "-c", "id -un; host printenv VMGR_MACHINE")
        assert done.stdout == b"dev\nnamed\n"
        others = hosts.vmgr("exec", "-u", "nobody", "named", "--", "host", "true", check=False)
        assert others.returncode != 0
        hosts.kill_helper()
        assert hosts.vmgr("exec", "named", "--", "host", "true").returncode == 0
    finally:
        hosts.vmgr("rm", "-f", "named")
