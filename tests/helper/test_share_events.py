"""What is changed on this computer reaches programs of a machine that watch, as inotify events."""

from __future__ import annotations

import json
import os
import select
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home, kill_and_wait, short_directory

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

# With the system calls themselves: the smallest image has perl, and nothing that watches.
WATCH = r"""
use strict;
my ($init, $add) = `uname -m` =~ /x86_64/ ? (294, 254) : (26, 27);
my %names = (2 => "MODIFY", 4 => "ATTRIB", 8 => "CLOSE_WRITE", 64 => "FROM", 128 => "TO",
  256 => "CREATE", 512 => "DELETE", 1024 => "DELETE_SELF", 0x40000000 => "DIR");
my $fd = syscall($init, 0);
open(my $in, "<&=", $fd) or die;
$| = 1;
for my $path (@ARGV) { syscall($add, $fd, my $copy = $path, 0x7ce) > 0 or die "$path: $!" }
print "watching\n";
my $cookies = 0; my %seen;
while (sysread($in, my $bytes, 65536)) {
  while (length $bytes) {
    my ($wd, $mask, $cookie, $length) = unpack("lLLL", $bytes);
    my $name = unpack("x16 Z$length", $bytes);
    $bytes = substr($bytes, 16 + $length);
    my $said = join("|", map { $names{$_} } grep { $mask & $_ } sort { $a <=> $b } keys %names);
    my $pair = $cookie ? " " . ($seen{$cookie} //= ++$cookies) : "";
    print "$said $name$pair\n" if $said;
  }
}
"""


class Watcher:
    """A program in a machine that says what it is told."""

    def __init__(self, home: Home, machine: str, *paths: str) -> None:
        self._process: subprocess.Popen[bytes] = home.start(
            "exec", machine, "--", "perl", "-e", WATCH, *paths, stderr=None, bufsize=0
        )
        assert self._process.stdout is not None
        self._fd = self._process.stdout.fileno()
        self._said = b""
        assert self.line() == "watching"

    def says_something(self, within: float) -> bool:
        return bool(self._said) or bool(select.select([self._fd], [], [], within)[0])

    def line(self, within: float = 60) -> str:
        end = time.monotonic() + within
        while b"\n" not in self._said:
            assert select.select([self._fd], [], [], max(0.0, end - time.monotonic()))[0], "nothing"
            part = os.read(self._fd, 65_536)
            assert part, "it has ended"
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return line.decode().rstrip()

    def lines_until(self, last: str) -> list[str]:
        """What it is told, up to this."""
        lines = [self.line()]
        while lines[-1] != last:
            lines.append(self.line())
        return lines

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    made = short_directory() / "shared"
    made.mkdir()
    (made / "d").mkdir()
    (made / "d/file").write_text("before")
    (made / "d/old").write_text("x")
    yield made
    shutil.rmtree(made.parent)


@pytest.fixture(scope="module")
def home(quick_module_home: Home, directory: Path) -> Home:
    quick_module_home.vmgr(
        "create", "m", *SMALL, "--image", "debian-minimal", "--share", f"{directory}:/mnt/s",
        "--share", f"{directory}:/mnt/ro:ro", "--start",
    )  # fmt: skip
    return quick_module_home


@pytest.fixture(params=["/mnt/s", "/mnt/ro"])
def watcher(home: Home, directory: Path, request: pytest.FixtureRequest) -> Iterator[Watcher]:
    """A watcher of the directory `d`, once it is told of changes."""
    made = Watcher(home, "m", f"{request.param}/d")
    settle(made, directory / "d")
    yield made
    made.close()


def settle(watcher: Watcher, there: Path) -> None:
    """Wait until changes are told: nobody says from when on they are."""
    for _ in range(100):
        (there / f"first-{time.monotonic_ns()}").touch()
        if watcher.says_something(0.2):
            break
    last = f"last-{time.monotonic_ns()}"
    (there / last).touch()
    watcher.lines_until(f"CLOSE_WRITE {last}")


def read(home: Home, path: str) -> str:
    return home.vmgr("exec", "m", "--", "cat", path).stdout.decode()


def test_what_is_done_here_is_told_there(watcher: Watcher, directory: Path) -> None:
    there = directory / "d"
    with (there / "file").open("a") as file:
        file.write("more")
    assert [watcher.line() for _ in range(2)] == ["MODIFY file", "CLOSE_WRITE file"]
    (there / "new").mkdir()
    assert watcher.line() == "CREATE|DIR new"
    (there / "made").write_text("content")
    assert [watcher.line() for _ in range(3)] == ["CREATE made", "MODIFY made", "CLOSE_WRITE made"]
    (there / "made").rename(there / "named")
    assert [watcher.line()[:-2] for _ in range(2)] == ["FROM made", "TO named"]
    (there / "named").chmod(0o600)
    assert watcher.line() == "ATTRIB named"
    (there / "link").symlink_to("named")
    assert watcher.line() == "CREATE link"
    for name in ("link", "named"):
        (there / name).unlink()
        assert watcher.line() == f"DELETE {name}"
    (there / "new").rmdir()
    assert watcher.line() == "DELETE|DIR new"
    # What is moved away, or comes from where nobody watches.
    (there / "old").rename(directory / "old")
    assert watcher.line() == "DELETE old"
    (directory / "old").rename(there / "old")
    assert watcher.line() == "CREATE old"


def test_what_was_told_of_is_not_stale(home: Home, watcher: Watcher, directory: Path) -> None:
    for number in range(5):
        # Of the same length, so that only the event says so.
        (directory / "d/file").write_text(f"number {number}")
        watcher.lines_until("CLOSE_WRITE file")
        assert read(home, "/mnt/s/d/file") == read(home, "/mnt/ro/d/file") == f"number {number}"


def test_many_changes_at_once(watcher: Watcher, directory: Path) -> None:
    names = [f"many{number}" for number in range(300)]
    for name in names:
        (directory / "d" / name).write_text("x")
    told = watcher.lines_until("CLOSE_WRITE many299")
    assert [line.split()[1] for line in told if line.startswith("CREATE")] == names
    for name in names:
        (directory / "d" / name).unlink()
    told = watcher.lines_until("DELETE many299")
    assert [line.split()[1] for line in told if line.startswith("DELETE")] == names


def test_the_machines_own_changes_are_told_once(home: Home, directory: Path) -> None:
    watcher, other = (Watcher(home, "m", f"/mnt/{share}/d") for share in ("s", "ro"))
    try:
        for one in (watcher, other):
            settle(one, directory / "d")
        watcher.lines_until(mark(directory))  # what the other one waited for is told here too
        script = "cd /mnt/s/d; echo x >own; mv own owned; rm owned; mkdir sub; rmdir sub"
        home.vmgr("exec", "m", "--", "sh", "-c", script)
        (directory / "d/sentinel").touch()
        assert [line.rstrip(" 0123456789") for line in watcher.lines_until("CREATE sentinel")] == [
            "CREATE own", "MODIFY own", "CLOSE_WRITE own", "FROM own", "TO owned", "DELETE owned",
            "CREATE|DIR sub", "DELETE|DIR sub", "CREATE sentinel",
        ]  # fmt: skip
        # To the other share it is somebody else's change.
        assert "CREATE|DIR sub" in other.lines_until("CREATE sentinel")
        (directory / "d/sentinel").unlink()
    finally:
        watcher.close()
        other.close()


def mark(directory: Path) -> str:
    """A line that is told after all that was done before."""
    name = f"mark-{time.monotonic_ns()}"
    (directory / "d" / name).touch()
    return f"CLOSE_WRITE {name}"


def test_another_server_goes_on_watching(home: Home, watcher: Watcher, directory: Path) -> None:
    report = json.loads(home.vmgr("doctor", "--audit", "--json", check=False).stdout)
    for process in report["processes"]:
        if process["role"] == "share":
            kill_and_wait(process["pid"])
    settle(watcher, directory / "d")


TELLERS = r"""
for fd in /proc/[0-9]*/fd/*; do
  [ "$(readlink "$fd")" = /dev/fuse ] && cat "${fd%/fd/*}"/task/*/children
done
true
"""


def test_a_killed_teller_is_replaced(home: Home, watcher: Watcher, directory: Path) -> None:
    def tellers() -> set[str]:
        return set(home.vmgr("exec", "m", "--", "sh", "-c", TELLERS).stdout.decode().split())

    before = tellers()
    assert len(before) == 2  # one for each share
    home.vmgr("exec", "m", "--", "kill", "-9", *before)
    settle(watcher, directory / "d")
    after = tellers()
    assert len(after) == 2
    assert not before & after


def test_watchers_are_told_after_a_suspend_and_in_copies(home: Home, directory: Path) -> None:
    watch = WATCH.replace("use strict;", 'use strict; open(STDOUT, ">", "/tmp/told");')
    home.vmgr("exec", "-d", "m", "--", "perl", "-e", watch, "/mnt/s/d")

    def told(machine: str, name: str) -> None:
        wait = f"until grep -q 'CLOSE_WRITE {name}' /tmp/told; do sleep 0.05; done"
        home.vmgr("exec", machine, "--", "sh", "-c", wait)

    wait = "until grep -q watching /tmp/told; do sleep 0.05; done; sleep 2"
    home.vmgr("exec", "m", "--", "sh", "-c", wait)
    (directory / "d/before").touch()
    told("m", "before")
    home.vmgr("suspend", "m")
    home.vmgr("resume", "m")
    home.vmgr("fork", "m", "copy")
    try:
        # Servers are told what to watch as they begin.
        for machine in ("m", "copy"):
            home.vmgr("exec", machine, "--", "ls", "/mnt/s/d")
            name = f"after-{machine}"
            (directory / "d" / name).touch()
            told(machine, name)
    finally:
        home.vmgr("rm", "-f", "copy")
