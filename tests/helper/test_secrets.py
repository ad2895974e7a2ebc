"""Secrets reach one command and nothing else: looked for wherever they must not be."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from tests.conftest import SMALL, Home

pytestmark = pytest.mark.vm

VALUE = "s3cret-" + secrets.token_hex(12)
FILED = "k3y-" + secrets.token_hex(12)
RULE = b"would hold the secrets"


@pytest.fixture(scope="module")
def home(quick_module_home: Home) -> Home:
    home = quick_module_home
    home.vmgr("secret", "set", "TOKEN", stdin=VALUE.encode() + b"\n")
    home.vmgr("secret", "set", "key", stdin=FILED.encode() + b"\nline two\n")
    return home


@pytest.fixture(scope="module")
def web(home: Home) -> str:
    name = f"m{secrets.token_hex(3)}"
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "--user", "dev", "--start", name)
    return name


def said(home: Home, *words: str) -> str:
    return home.vmgr(*words).stdout.decode()


def test_they_are_listed_without_their_values(home: Home) -> None:
    listed = said(home, "secret", "ls")
    assert "TOKEN" in listed
    assert "file" in listed
    assert VALUE not in said(home, "secret", "ls", "--json")
    directory = home.root / "state/vmgr/secrets"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_a_command_has_it_in_its_environment(home: Home, web: str) -> None:
    assert said(home, "exec", "--secret", "TOKEN", web, "--", "printenv", "TOKEN") == VALUE + "\n"
    other = ("exec", "--secret", "TOKEN=OTHER", web, "--", "sh", "-c", "echo $TOKEN.$OTHER")
    assert said(home, *other) == f".{VALUE}\n"
    # The next one has not.
    assert home.vmgr("exec", web, "--", "printenv", "TOKEN", check=False).returncode == 1


def test_a_command_has_it_as_a_file(home: Home, web: str) -> None:
    script = "cat /run/secrets/id; stat -c '%a %U %n' /run/secrets/id; id -un"
    lines = said(home, "exec", "--secret", "key:/run/secrets/id", web, "--", "sh", "-c", script)
    assert lines.splitlines() == [FILED, "line two", "400 dev /run/secrets/id", "dev"]
    # Nobody else sees it, neither meanwhile nor afterwards.
    with home.start(
        "exec", "--secret", "key:id", web, "--", "sh", "-c", "echo there; cat", bufsize=0
    ) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline() == b"there\n"
        seen = said(home, "exec", "-u", "root", web, "--", "ls", "-A", "/run/secrets")
        assert seen == ""
        running.stdin.close()
        running.wait(60)
    mounts = said(home, "exec", "-u", "root", web, "--", "cat", "/proc/1/mounts")
    assert "/run/secrets" not in mounts


def test_a_run_is_given_one(home: Home) -> None:
    run = ("run", *SMALL, "--secret", "TOKEN", "debian-minimal", "--", "printenv", "TOKEN")
    assert said(home, *run) == VALUE + "\n"


def test_it_is_in_no_command_line_no_log_and_no_state(home: Home, web: str) -> None:
    both = ("--secret", "TOKEN", "--secret", "key:id")
    with home.start("exec", *both, web, "--", "sh", "-c", "echo there; cat", bufsize=0) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline() == b"there\n"
        values = (VALUE.encode(), FILED.encode())
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                _absent(entry / "cmdline", values)
                if entry.name in map(str, home.processes()):
                    _absent(entry / "environ", values)
        inside = said(
            home, "exec", "-u", "root", web, "--", "sh", "-c", "cat /proc/[0-9]*/cmdline"
        ).encode()
        assert not any(value in inside for value in values)
        assert not any(value in said(home, "jobs", web).encode() for value in values)
        events = home.start("events", "--json", "--since", "0")
        assert events.stdout is not None
        first = events.stdout.readline()
        events.kill()
        events.communicate()
        assert not any(value in first for value in values)
        running.stdin.close()
        running.wait(60)
    home.vmgr("exec", "-u", "root", web, "--", "sync")
    stores = home.root / "state/vmgr/secrets"
    for path in home.root.rglob("*"):
        if path.is_file() and stores not in path.parents:
            _absent(path, values)


def _absent(path: Path, values: tuple[bytes, ...]) -> None:
    try:
        content = path.read_bytes()
    except OSError:  # it has ended, or is another's
        return
    assert not any(value in content for value in values), path


def test_a_machine_is_not_copied_while_a_command_has_one(home: Home, web: str) -> None:
    job = said(home, "exec", "-d", "--secret", "TOKEN", web, "--", "sleep", "1000").strip()
    copies = (("snapshot", "create", web, "no"), ("fork", web, f"{web}-2"))
    for copy in copies:
        done = home.vmgr(*copy, check=False)
        assert done.returncode != 0
        assert RULE in done.stderr
    # A helper that did not see it begin knows as well.
    home.kill_helper()
    assert RULE in home.vmgr(*copies[1], check=False).stderr
    # Suspended, it holds them all the same; this computer alone has that.
    home.vmgr("suspend", web)
    assert RULE in home.vmgr(*copies[0], check=False).stderr
    home.vmgr("exec", "-u", "root", web, "--", "pkill", "sleep")
    home.vmgr("attach", web, job, check=False)
    home.vmgr(*copies[0])
    home.vmgr("snapshot", "rm", f"{web}:no")
    assert len(home.json("ls")) == 1


def test_what_cannot_be_is_refused(home: Home, web: str) -> None:
    for use, words in (
        ("NONE", b"no secret NONE"),
        ("../x", b"cannot be a secret's name"),
        ("TOKEN=a-b", b"cannot be a variable's name"),
        ("TOKEN=", b"names no variable"),
        ("TOKEN:/etc/passwd", b"below /run/secrets"),
        ("TOKEN:..", b"cannot be a secret's file"),
    ):
        done = home.vmgr("exec", "--secret", use, web, "--", "true", check=False)
        assert done.returncode == (125 if words == b"no secret NONE" else 2), use
        assert words in done.stderr, use
    assert home.vmgr("secret", "set", "x", stdin=b"", check=False).returncode == 2
    assert home.vmgr("secret", "set", "x", stdin=b"x" * 20_000, check=False).returncode == 2
    assert home.vmgr("secret", "set", "x", stdin=b"\xff", check=False).returncode == 2
    assert b"no secret x" in home.vmgr("secret", "rm", "x", check=False).stderr
