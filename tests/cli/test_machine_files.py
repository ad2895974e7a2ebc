"""Files of machines from the host: ls, cat, edit, and cp between machines."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL
from tests.helper.test_fork import shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Home

pytestmark = pytest.mark.vm

MAKE = """
mkdir -p /srv/app/sub /srv/empty
printf 'one\\n' > "/srv/app/sub/a b"
ln -s /etc/passwd /srv/app/link
mkfifo /srv/app/pipe
touch /srv/app/.hidden
chmod 4750 "/srv/app/sub/a b"
printf '1\\n' > /etc/conf; chown 5:6 /etc/conf; chmod 640 /etc/conf
"""


@pytest.fixture(scope="module")
def home(quick_module_home: Home) -> Iterator[Home]:
    """A home with the running machines `web`, which has files, and `db`."""
    made = quick_module_home
    for name in ("web", "db"):
        made.vmgr("create", *SMALL, "--image", "debian-minimal", "--start", name)
    shell(made, "web", MAKE)
    yield made
    made.vmgr("rm", "-f", "web", "db")


def edit(
    home: Home, editor: str, place: str, variable: str = "VISUAL"
) -> subprocess.CompletedProcess[bytes]:
    """Edit a file with a command of a shell, in which $1 is the file."""
    command = f"sh -c {shlex.quote(editor)} x"
    return subprocess.run(
        home.command("edit", place), env={**home.environment, variable: command},
        cwd=home.root, capture_output=True, check=False, input=b"",
    )  # fmt: skip


def kept(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode().partition("kept in ")[2].partition(".\n")[0]


def test_listing(home: Home) -> None:
    assert home.vmgr("ls", "web:/srv/app").stdout == b"link\npipe\nsub\n"
    assert b".hidden" in home.vmgr("ls", "-a", "web:/srv/app").stdout
    assert home.vmgr("ls", "web:/srv/empty").stdout == b""
    header, link, pipe, sub = home.vmgr("ls", "-l", "web:/srv/app").stdout.decode().splitlines()
    assert header.split()[0] == "MODE"
    assert link.split()[0] == "lrwxrwxrwx"
    assert link.endswith("link -> /etc/passwd")
    assert pipe.split()[0] == "prw-r--r--"
    assert sub.split()[:3] == ["drwxr-xr-x", "root", "root"]
    (file,) = json.loads(home.vmgr("ls", "--json", "web:/srv/app/sub").stdout)
    assert (file["name"], file["kind"], file["mode"], file["size"]) == ("a b", "file", 0o4750, 4)
    (file,) = json.loads(home.vmgr("ls", "--json", "web:/etc/conf").stdout)
    assert (file["uid"], file["user"], file["gid"]) == (5, "games", 6)
    two = home.vmgr("ls", "web:/srv/app", "db:/srv").stdout.decode()
    assert two.splitlines()[0] == "web:/srv/app:"
    assert "db:/srv:" in two


def test_listing_goes_on_listing_machines(home: Home) -> None:
    assert home.vmgr("ls", "-q").stdout == b"web\ndb\n"
    done = home.vmgr("ls", "web", check=False)
    assert done.returncode == 2
    assert b"web names no file of a machine" in done.stderr


def test_what_is_not_there(home: Home) -> None:
    for verb in ("ls", "cat"):
        done = home.vmgr(verb, "web:/nope", check=False)
        assert done.returncode == 1
        assert done.stderr == b"vmgr: /nope: No such file or directory\n"
        done = home.vmgr(verb, "nope:/x", check=False)
        assert b"there is no machine named nope" in done.stderr


def test_what_a_machine_names_steers_no_terminal(home: Home) -> None:
    shell(home, "web", "mkdir -p /srv/odd; touch /srv/odd/$(printf 'a\\033[31mb')")
    assert home.vmgr("ls", "web:/srv/odd").stdout.decode() == "a\N{REPLACEMENT CHARACTER}[31mb\n"
    (file,) = json.loads(home.vmgr("ls", "--json", "web:/srv/odd").stdout)
    assert file["name"] == "a\x1b[31mb"


def test_contents(home: Home) -> None:
    done = home.vmgr("cat", "web:/etc/conf", "web:/srv/app/sub/a b")
    assert done.stdout == b"1\none\n"
    done = home.vmgr("cat", "web:/etc/conf", "web:/srv", "web:/etc/conf", check=False)
    assert (done.returncode, done.stdout) == (1, b"1\n1\n")
    assert done.stderr == b"vmgr: /srv: Is a directory\n"


def test_between_machines(home: Home) -> None:
    done = home.vmgr("cp", "web:/srv/app", "db:/srv", check=False)
    assert done.returncode == 1  # for the pipe alone
    assert done.stderr.count(b"\n") == 1
    assert shell(home, "db", "cd /srv/app; find . | sort; readlink link; cat 'sub/a b'") == [
        ".", "./.hidden", "./link", "./sub", "./sub/a b", "/etc/passwd", "one",
    ]  # fmt: skip
    assert shell(home, "db", "stat -c '%a %u' '/srv/app/sub/a b'") == ["750 0"]
    home.vmgr("cp", "-a", "web:/etc/conf", "web:/srv/app/sub", "db:/opt")
    assert shell(home, "db", "stat -c '%a %u' /opt/conf '/opt/sub/a b'") == ["640 5", "4750 0"]
    home.vmgr("cp", "web:/etc/conf", "db:/opt/other")
    assert shell(home, "db", "cat /opt/other") == ["1"]
    # Within one, too.
    home.vmgr("cp", "db:/opt/other", "db:/opt/again")
    assert shell(home, "db", "cat /opt/again") == ["1"]
    for arguments, words in (
        (("web:/etc/conf", "db:/nope/x"), b"No such file"),
        (("web:/etc/conf", "web:/etc/passwd", "db:/opt/x"), b"db:/opt/x is not a directory"),
        (("web:/nope", "db:/opt"), b"/nope: No such file or directory"),
        (("web:/etc/conf", "here", "db:/opt"), b"some of what is to be copied"),
    ):
        done = home.vmgr("cp", *arguments, check=False)
        assert done.returncode != 0
        assert words in done.stderr


def test_editing_keeps_mode_and_owner(home: Home) -> None:
    done = edit(home, 'echo two >> "$1"', "web:/etc/conf")
    assert done.returncode == 0, done.stderr
    look = "cat /etc/conf; stat -c '%a %u %g' /etc/conf; ls /etc | grep vmgr-write || true"
    assert shell(home, "web", look) == ["1", "two", "640 5 6"]
    assert edit(home, 'echo new > "$1"', "web:/etc/fresh", "EDITOR").returncode == 0
    assert shell(home, "web", "cat /etc/fresh") == ["new"]


def test_what_is_not_changed_is_not_written(home: Home) -> None:
    (before,) = shell(home, "web", "stat -c %i-%Z /etc/conf")
    done = edit(home, "true", "web:/etc/conf")
    assert (done.returncode, done.stderr) == (0, b"vmgr: web:/etc/conf is left as it is.\n")
    done = edit(home, 'echo lost > "$1"; exit 3', "web:/etc/conf")
    assert done.returncode == 1
    assert b"exited with 3, so nothing was written" in done.stderr
    assert shell(home, "web", "stat -c %i-%Z /etc/conf") == [before]
    assert edit(home, "true", "web:/etc").returncode == 2


def test_somebody_elses_change_is_not_lost(home: Home, tmp_path: Path) -> None:
    command = shlex.join(home.command("exec", "web", "--", "sh", "-c", "echo theirs > /etc/conf"))
    done = edit(home, f'{command}; echo mine > "$1"', "web:/etc/conf")
    assert done.returncode == 1
    assert b"has been changed by somebody else meanwhile" in done.stderr
    assert shell(home, "web", "cat /etc/conf") == ["theirs"]
    mine = tmp_path.__class__(kept(done))
    assert mine.read_bytes() == b"mine\n"
    mine.unlink()
    mine.parent.rmdir()


def test_a_quiet_input_does_not_hide_a_failure(home: Home) -> None:
    """It ends with the copy, though nothing has been typed."""
    read, write = os.pipe()
    try:
        copying = home.start("cp", "-", "web:/proc/none", stdin=read)
        output, said = copying.communicate(timeout=60)
        assert copying.returncode == 1
        assert b"none" in output + (said or b"")
    finally:
        os.close(read)
        os.close(write)
