"""The person's shell is asked; each shell that is here, with start-up files that misbehave."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path  # noqa: TC003 (the fixtures' types are read)

import pytest

from vmgr.userenv import Person, capture, login_umask

STARTUP = {
    "bash": ".bash_profile",
    "zsh": ".zshrc",
    "fish": ".config/fish/config.fish",
    "sh": ".profile",
}
POSIX = "export FROM_RC='two words'; export PATH=/opt/mine:$PATH; umask 027"
SET = {"fish": "set -gx FROM_RC 'two words'; set -gx PATH /opt/mine $PATH; umask 027"}
SHELLS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason="not installed"))
    for name in STARTUP
]
Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a shell's start-up file into a home of its own; gives the shell's path."""
    real = pwd.getpwuid(os.getuid())

    def account(_uid: int) -> pwd.struct_passwd:
        return pwd.struct_passwd((*real[:5], str(tmp_path), real.pw_shell))

    monkeypatch.setattr(pwd, "getpwuid", account)

    def put(shell: str, text: str) -> str:
        file = tmp_path / STARTUP[shell]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        return shutil.which(shell) or shell

    return put


@pytest.mark.parametrize("shell", SHELLS)
async def test_what_the_start_up_files_set_is_told(write: Write, shell: str) -> None:
    told = await capture(write(shell, SET.get(shell, POSIX)))
    assert told.problem is None
    assert told.environment["FROM_RC"] == "two words"
    assert told.environment["PATH"].split(":")[0] == "/opt/mine"
    assert told.umask == 0o027
    assert not {"SHLVL", "PWD", "_", "VMGR_RESOLVING_ENVIRONMENT"} & set(told.environment)


@pytest.mark.parametrize("shell", SHELLS)
async def test_noise_does_not_matter(write: Write, shell: str) -> None:
    noise = "echo FAKE=1; echo more noise >&2; printf 'a\\nb'\n"
    told = await capture(write(shell, noise + SET.get(shell, POSIX)))
    assert told.problem is None
    assert told.environment["FROM_RC"] == "two words"
    assert "FAKE" not in told.environment


@pytest.mark.parametrize("shell", ["bash", "sh"])
async def test_exit_traps_do_not_run(write: Write, tmp_path: Path, shell: str) -> None:
    (tmp_path / ".bash_logout").write_text(f"touch {tmp_path}/out")
    told = await capture(write(shell, f"trap 'touch {tmp_path}/trapped' EXIT\n{POSIX}"))
    assert told.problem is None
    assert visible_in(tmp_path) == []


async def test_values_may_be_anything(write: Write) -> None:
    told = await capture(write("bash", "export ODD=$'line\\nbreak=\\xff'; f() { :; }; export -f f"))
    assert told.problem is None
    assert os.fsencode(told.environment["ODD"]) == b"line\nbreak=\xff"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sleep 1000", "did not come to its end within 0.5 s"),
        ("trap '' TERM INT HUP; while :; do :; done", "did not come to its end within 0.5 s"),
        ("exit 0", "do something else"),
        ("exec true", "do something else"),
        ("exec /bin/cat", "do something else"),  # nothing to read, so it ends
    ],
)
async def test_a_shell_that_does_not_tell_gives_the_default(
    write: Write, text: str, said: str
) -> None:
    told = await capture(write("bash", text), deadline=0.5 if "end" in said else 30)
    assert told.problem is not None
    assert said in told.problem
    assert told.environment["PATH"].startswith("/usr/local/sbin:")
    assert told.environment["USER"]
    assert told.umask == login_umask()


async def test_a_daemon_that_start_up_files_leave_does_not_hold_it_up(
    write: Write, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    text = f"setsid sh -c 'echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 100' &\n"
    wait = f"until [ -e {pid} ]; do :; done\n"
    async with asyncio.timeout(60):
        told = await capture(write("bash", text + wait + POSIX), deadline=40)
    os.kill(int(pid.read_text()), 9)
    assert told.problem is None
    assert told.environment["FROM_RC"] == "two words"


@pytest.mark.parametrize("shell", ["/nonexistent/bash", "/usr/sbin/nologin", "/bin/false"])
async def test_without_a_shell_there_is_a_default(shell: str) -> None:
    told = await capture(shell)
    assert told.problem is not None
    assert "HOME" in told.environment


@pytest.mark.parametrize(
    ("text", "umask"),
    [("UMASK 027\n", 0o027), ("#UMASK 077\nUMASK\t022 # x\n", 0o022), ("", 0o022)],
)
def test_the_umask_of_a_login(tmp_path: Path, text: str, umask: int) -> None:
    (tmp_path / "login.defs").write_text(text)
    assert login_umask(tmp_path / "login.defs") == umask
    assert login_umask(tmp_path / "none") == 0o022


def visible_in(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))


# -- using it --------------------------------------------------------------------------------------


async def test_the_shell_is_asked_once_and_again_on_demand(write: Write) -> None:
    count = "echo x >>~/asked\n"
    person = Person(write("bash", count + POSIX))
    asked = await asyncio.gather(*(person.environment() for _ in range(5)))
    assert all(one is asked[0] for one in asked)
    home = asked[0].home
    assert (home / "asked").read_text() == "x\n"
    write("bash", count + POSIX.replace("two words", "other"))
    assert (await person.environment()).environment["FROM_RC"] == "two words"
    assert (await person.environment(refresh=True)).environment["FROM_RC"] == "other"
    # One that has become unusable does not take away what was known.
    write("bash", "exit 1")
    assert (await person.environment(refresh=True)).environment["FROM_RC"] == "other"


async def test_a_command_of_theirs_gets_their_context_and_none_of_ours(write: Write) -> None:
    person = Person(write("bash", POSIX))
    stray = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(stray, True)  # noqa: FBT003 (the call takes no keyword)
    read, end = os.pipe()
    script = "umask; echo $FROM_RC; pwd; ls /proc/self/fd | wc -l; ps -o sid= -p $$; echo $$"
    try:
        process = await person.spawn(["sh", "-c", script], stdout=end)
        os.close(end)
        assert (await process.wait()).ok
        umask, set_there, where, fds, session, pid = os.read(read, 4096).decode().split("\n")[:6]
    finally:
        os.close(read)
        os.close(stray)
    assert (umask, set_there) == ("0027", "two words")
    assert where == str((await person.environment()).home)
    assert int(fds) == 4, "0, 1, 2 and that of the listing"
    assert session.strip() == pid, "a session of its own"
