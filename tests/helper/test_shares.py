"""Directories of this computer in machines, on a real one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home, kill_and_wait, short_directory, templates_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.vm

ODD = 'odd, "name"\n= é'


@pytest.fixture(scope="module")
def quick(shared_images: tuple[Path, Path], small_template: Path) -> Iterator[Home]:
    """A home for the whole module, whose machines start from a template."""
    data, cache = shared_images
    templates = templates_of(cache)
    shutil.rmtree(templates, ignore_errors=True)
    shutil.copytree(small_template, templates, copy_function=os.link)
    home = Home(short_directory(), data, cache, templates=True)
    yield home
    home.close()
    shutil.rmtree(templates, ignore_errors=True)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """What is shared."""
    made = short_directory() / ODD
    made.mkdir()
    made.chmod(0o755)
    yield made
    shutil.rmtree(made.parent)


@pytest.fixture(scope="module")
def machine(quick: Home, directory: Path) -> Home:
    """A home with a machine `m` that sees the directory at /mnt/s."""
    quick.vmgr(
        "create", "m", *SMALL, "--image", "debian-minimal", "--share", f"{directory}:/mnt/s",
        "--start",
    )  # fmt: skip
    return quick


def shell(home: Home, script: str, *, user: str = "root", check: bool = True) -> str:
    """What a script in the machine prints, in the shared directory."""
    done = home.vmgr("exec", "-u", user, "-w", "/mnt/s", "m", "--", "sh", "-c", script, check=check)
    return (done.stdout + done.stderr).decode()


def test_both_sides_see_what_the_other_writes(machine: Home, directory: Path) -> None:
    assert machine.json("info", "m")["started_from"] == "template"
    (directory / "from host").write_text("hello")
    assert shell(machine, "cat 'from host'; printf 'good day' >in; mkdir d; mv in d/out") == "hello"
    assert (directory / "d/out").read_text() == "good day"
    (directory / "from host").write_text("hello again")
    assert shell(machine, "cat 'from host'") == "hello again"


def test_a_directory_is_seen_as_the_machine_has_just_left_it(
    machine: Home, directory: Path
) -> None:
    script = """
    mkdir e e2
    touch e/1; stat -c %Y.%y e; touch e/2; stat -c %Y.%y e
    chmod 711 e; mkdir e/d; stat -c '%a %h' e
    mv e/d e2/d; stat -c %h e e2; rm e/1; stat -c %y e; chmod 700 e; stat -c %a e
    """
    said = shell(machine, script).splitlines()
    assert said[0] < said[1]
    assert said[2:5] == ["711 3", "2", "3"]
    there = (directory / "e").stat()
    assert said[5].split()[1] == time.strftime(
        f"%H:%M:%S.{there.st_mtime_ns % 10**9:09}", time.gmtime(there.st_mtime)
    )
    assert said[6] == "700"


def test_a_boot_has_its_shares_before_its_first_command(quick: Home, directory: Path) -> None:
    (directory / "there").write_text("seen")
    ran = quick.vmgr(
        "run", "--cold", *SMALL, "--share", f"{directory}:/mnt/a", "--share",
        f"{directory}:/srv/b:ro", "debian-minimal", "--", "sh", "-c",
        "cat /mnt/a/there /srv/b/there; touch /mnt/a/new; touch /srv/b/other",
        check=False,
    )  # fmt: skip
    assert ran.stdout == b"seenseen"
    assert b"Read-only file system" in ran.stderr
    assert (directory / "new").exists()
    assert not (directory / "other").exists()


POSIX = r"""
umask 022
t() { printf '%s: ' "$1"; shift; "$@" 2>&1 | tr '\n' ' '; echo; }
touch a; chmod 4755 a; t suid stat -c %a:%u:%g a
chown 1234:567 a; t owner stat -c %a:%u:%g a
mkfifo p; (echo through >p &) ; t pipe cat p
mknod device c 1 3; t device stat -c %F:%t:%T device; t null head -c1 device
ln -s /etc/passwd absolute; ln -s nowhere dangling; t links readlink absolute dangling
ln a b; t hard stat -c %h a b
touch -d '2001-02-03 04:05:06.123456789' a; t time stat -c %y a
truncate -s 1G sparse; t sparse stat -c %s:%b sparse; rm sparse
name=$(printf 'n%.0s' $(seq 255)); t longest sh -c "touch $name && ls | grep -c nnnn"; rm $name
t longer sh -c "touch x$name 2>&1 | grep -o 'name too long'"
echo old >open; exec 3<>open; echo new >other; mv other open; t replaced sh -c 'cat <&3; cat open'
exec 3<>open; rm open; echo more >&3; t unlinked stat -L -c %h:%s /proc/self/fd/3; exec 3>&-
t locks flock lock sh -c 'flock -n lock true && echo both || echo one'
mkdir group; chgrp 77 group; chmod 2775 group; touch group/f; mkdir group/d
t set-group-id stat -c %a:%g group group/f group/d
mkdir sticky; chmod 1777 sticky; t sticky stat -c %a sticky
echo one >log; echo two >>log; t append cat log
printf x >rising; chmod 6755 rising; chown 1000 rising; chmod 6755 rising
chmod 000 log; t root cat log
mkdir closed; chmod 555 closed; t root sh -c 'touch closed/f; ls closed'
cp --sparse=always /bin/ls program; t copied cmp /bin/ls program; t runs ./program -d .
mkdir -p deep/er; cd deep/er; mv ../../deep ../../moved; t cwd sh -c 'echo hi >f; cat f'; cd ../..
mkdir many; (cd many; seq 1 300 | xargs touch)
t many sh -c 'ls many | wc -l; rm -r many; ls | grep -c many'
perl -e 'use Fcntl; sysopen(F, "git", O_RDWR|O_CREAT|O_EXCL, 0444) or die "$!";
  syswrite(F, "git");'
t exclusive stat -c %a:%s git
perl -e 'use Fcntl; sysopen(F, ".", O_RDWR|020200000, 0640) or die "$!"; syswrite(F, "tmp");
  my ($from, $to) = ("/proc/self/fd/".fileno(F), "linked");
  syscall(265, -100, $from, -100, $to, 0x400) == 0 or die "$!"'
t unnamed stat -c %a:%s linked
"""

SHOWN = """\
suid: 4755:0:0
owner: 755:1234:567
pipe: through
device: character special file:1:3
null:
links: /etc/passwd nowhere
hard: 2 2
time: 2001-02-03 04:05:06.123456789 +0000
sparse: 1073741824:0
longest: 1
longer: name too long
replaced: old new
unlinked: 0:5
locks: one
set-group-id: 2775:77 644:77 2755:77
sticky: 1777
append: one two
root: one two
root: f
copied:
runs: .
cwd: hi
many: 300 0
exclusive: 444:3
unnamed: 640:3
"""


def test_it_behaves_like_a_disk_of_the_machine(machine: Home, directory: Path) -> None:
    here = directory / "posix"
    here.mkdir()
    said = shell(machine, f"cd posix && {POSIX}")
    assert "".join(f"{line.rstrip()}\n" for line in said.splitlines()) == SHOWN
    modes = {path.name: f"{path.lstat().st_mode:o}" for path in here.iterdir()}
    assert modes["a"] == modes["rising"] == "100755"
    assert modes["device"] == modes["p"] == "100644"
    assert modes["group"] == "40775"
    assert modes["sticky"] == "41777"
    assert modes["git"] == "100444"
    assert {path.lstat().st_uid for path in here.rglob("*")} == {os.getuid()}
    assert os.getxattr(here / "rising", "user.vmgr.stat") == b"1 1000 - 106000 -"


def test_a_users_writes_take_what_rises_away(machine: Home) -> None:
    shell(machine, "printf x >mine; chmod 6777 mine")
    assert shell(machine, "printf y >>mine; stat -c %a:%u mine", user="1000") == "777:0\n"
    assert "denied" in shell(machine, "touch not-mine", user="1000", check=False)


def test_an_open_file_survives_a_server_that_is_killed(machine: Home, directory: Path) -> None:
    script = "exec 5>>kept; echo 1 >&5; echo ready; read go; echo 2 >&5; cat kept"
    command = ("exec", "-i", "-w", "/mnt/s", "m", "--", "sh", "-c", script)
    with machine.start(*command, bufsize=0) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == b"ready\n"
        since = machine.last_event()
        (server,) = servers(machine)
        kill_and_wait(server)
        machine.wait_for_event("machine.share-served", since)
        writer.stdin.write(b"go\n")
        assert writer.stdout.read() == b"1\n2\n"
    assert (directory / "kept").read_text() == "1\n2\n"
    assert servers(machine) != [server]


def test_shares_come_and_go_while_the_machine_runs(machine: Home, directory: Path) -> None:
    (directory / "sub").mkdir()
    machine.vmgr("share", "add", "m", f"{directory}/sub:/mnt/t:ro")
    assert [s["guest"] for s in machine.json("share", "ls", "m")] == ["/mnt/s", "/mnt/t"]
    assert shell(machine, "touch sub/f; ls /mnt/t") == "f\n"
    again = machine.vmgr("share", "add", "m", f"{directory}:/mnt/t", check=False)
    assert b"cannot both be at /mnt/t" in again.stderr
    machine.vmgr("share", "rm", "m", "/mnt/t")
    assert shell(machine, "ls /mnt/t") == ""
    assert len(servers(machine)) == 1
    gone = machine.vmgr("share", "rm", "m", "/mnt/t", check=False)
    assert b"has no share at /mnt/t" in gone.stderr


def test_the_servers_are_locked_in(machine: Home) -> None:
    report = machine.json("doctor", "--audit")
    (server,) = [one for one in report["processes"] if one["role"] == "share"]
    assert server["umask"] == 0
    assert server["problems"] == []
    assert report["problems"] == []


def test_a_machine_goes_on_with_its_files_after_a_suspend_and_in_copies(
    machine: Home, directory: Path
) -> None:
    script = "exec 5>>through; cd posix; echo >../up; read x <../go; echo $x >&5; pwd >&5"
    shell(machine, "mkfifo go")
    machine.vmgr("exec", "-d", "-w", "/mnt/s", "m", "--", "sh", "-c", script)
    shell(machine, "until [ -e up ]; do sleep 0.1; done")
    machine.vmgr("suspend", "m")
    assert servers(machine) == []
    machine.vmgr("fork", "m", "copy")
    for name in ("m", "copy"):
        machine.vmgr("exec", "-w", "/mnt/s", name, "--", "sh", "-c", f"echo {name} >go; sync")
    machine.vmgr("exec", "copy", "--", "sh", "-c", "until grep -q copy /mnt/s/through; do :; done")
    machine.vmgr("rm", "-f", "copy")
    assert (directory / "through").read_text() == "m\n/mnt/s/posix\ncopy\n/mnt/s/posix\n"


def test_another_helper_finds_the_servers(machine: Home, directory: Path) -> None:
    before = servers(machine)
    machine.kill_helper()
    (directory / "late").write_text("late")
    assert shell(machine, "cat late") == "late"
    assert servers(machine) == before
    machine.kill_helper()
    kill_and_wait(before[0])
    assert shell(machine, "cat late") == "late"
    assert len(servers(machine)) == 1


@pytest.mark.skipif("VMGR_LONG_SHARES" not in os.environ, reason="set VMGR_LONG_SHARES=1: 15 s")
def test_a_directory_that_is_gone_fails_and_comes_back(machine: Home, directory: Path) -> None:
    lost = directory.parent / "lost"
    lost.mkdir()
    machine.vmgr("share", "add", "m", f"{lost}:/mnt/lost")
    (other,) = set(servers(machine)) - {servers(machine)[0]}
    lost.rmdir()
    kill_and_wait(other)
    since = machine.last_event()
    # It waits for a server, and then for nothing.
    for _ in range(2):
        assert "Input/output error" in shell(machine, "ls /mnt/lost", check=False)
    machine.vmgr("suspend", "m")
    assert "Input/output error" in shell(machine, "ls /mnt/lost", check=False)
    lost.mkdir()
    (lost / "back").touch()
    machine.wait_for_event("machine.share-served", since, guest="/mnt/lost")
    assert shell(machine, "ls /mnt/lost") == "back\n"
    machine.vmgr("share", "rm", "m", "/mnt/lost")


OPEN_MANY = """
ulimit -n 30000
exec perl -e '$| = 1;
for (0..COUNT - 1) { open $f[$_], "<", sprintf("many/%d/%d", $_ / 1000, $_ % 1000) or die "$_: $!" }
print "open\n"; <STDIN>'
"""


@pytest.mark.skipif("VMGR_LONG_SHARES" not in os.environ, reason="set VMGR_LONG_SHARES=1: minutes")
@pytest.mark.timeout(1800)
def test_many_files_are_given_back(machine: Home, directory: Path) -> None:
    """100,000 looked at, 20,000 open at once."""
    for hundred in range(100):
        (directory / f"many/{hundred}").mkdir(parents=True)
        for number in range(1000):
            (directory / f"many/{hundred}/{number}").touch()
    (server,) = servers(machine)

    def used() -> tuple[int, int, int]:
        """Open files and KiB of the server, KiB of what serves the share in the machine."""
        status = Path(f"/proc/{server}/status").read_text().split()
        pump = shell(
            machine,
            "for one in /proc/[0-9]*; do ls -l $one/fd | grep -q /dev/fuse || continue; "
            "sed -n 's/^VmRSS: *//p' $one/status; done",
        )
        files = len(os.listdir(f"/proc/{server}/fd"))  # noqa: PTH208
        return files, int(status[status.index("VmRSS:") + 1]), int(pump.split()[0])

    def walk() -> None:
        assert shell(machine, "find many -type f -links 1 | wc -l") == "100000\n"

    walk()
    before = used()
    walk()
    # This computer may permit fewer.
    count = min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 256)
    script = OPEN_MANY.replace("COUNT", str(count))
    opener = machine.start(
        "exec", "-i", "-w", "/mnt/s", "m", "--", "sh", "-c", script,
        stdin=subprocess.PIPE, stderr=None,
    )  # fmt: skip
    assert opener.stdout is not None
    assert opener.stdout.readline() == b"open\n"
    most = used()
    assert most[0] > count
    opener.communicate(b"\n", timeout=300)
    shell(machine, "echo 3 > /proc/sys/vm/drop_caches")
    after = used()
    sys.stderr.write(f"files and KiB: {before}, {most} with {count} open, {after} after\n")
    assert after[0] <= before[0] + 4
    assert after[1] < before[1] + 8192
    assert after[2] < before[2] + 8192


def servers(home: Home) -> list[int]:
    """The processes that serve shares of a home."""
    report = home.vmgr("doctor", "--audit", "--json", check=False).stdout
    found = json.loads(report)["processes"]
    return [one["pid"] for one in found if one["role"] == "share"]
