"""Sessions of OpenSSH's client in a machine."""

from __future__ import annotations

import select
import signal
from typing import TYPE_CHECKING

import asyncssh
import pytest

if TYPE_CHECKING:
    from tests.ssh.conftest import Client

pytestmark = pytest.mark.vm


def test_a_command_has_its_streams_and_exit_code(client: Client) -> None:
    done = client.ssh("m@vmgr", "cat; echo problem >&2; exit 7", input=b"\0\xff line")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"\0\xff line", b"problem\n")


def test_a_user_is_named_before_the_machine(client: Client) -> None:
    assert client.out("m@vmgr", "id -un") == "root\n"
    assert client.out("1234:5@m@vmgr", "id -u; id -g; pwd").split() == ["1234", "5", "/"]
    assert client.out("-l", "1234@m", "vmgr", "id -u") == "1234\n"


def test_a_script_on_stdin_runs_in_the_login_shell(client: Client) -> None:
    """As VS Code's Remote-SSH and many others begin."""
    said = client.out("-T", "m@vmgr", input=b'echo "$0 $HOME"; exit\n')
    assert said == "-bash /root\n"
    assert client.out("m@vmgr", "sh", input=b"echo $((6 * 7))\n") == "42\n"


@pytest.mark.parametrize(
    ("login", "message"),
    [
        ("nobody-here@vmgr", "there is no machine named nobody-here"),
        ("ghost@m@vmgr", "there is no user ghost in m"),
        ("a/b@vmgr", "the user name names no machine"),
    ],
)
def test_what_is_not_there_is_said(client: Client, login: str, message: str) -> None:
    done = client.ssh(login, "true")
    assert done.returncode == 255
    assert done.stderr.decode().startswith(f"vmgr: {message}")


def test_only_some_of_the_environment_goes_along(client: Client) -> None:
    client_environment = {**client.environment, "LC_NAME": "C", "SECRET": "x", "GIT_PROTOCOL": "2"}
    done = client.start(
        "-o", "SetEnv=LC_NAME=C SECRET=x GIT_PROTOCOL=2 LD_PRELOAD=/x", "m@vmgr", "env"
    )
    said = done.communicate(timeout=60)[0].decode().split("\n")
    assert client_environment  # what the client has is its own matter
    assert {"LC_NAME=C", "GIT_PROTOCOL=2"} <= set(said)
    assert not [line for line in said if line.startswith(("SECRET", "LD_PRELOAD"))]
    assert [line for line in said if line.startswith("SSH_CONNECTION=127.0.0.1 ")]


async def connected(client: Client, login: str = "m") -> asyncssh.SSHClientConnection:
    state = client.home.root / "state/vmgr/ssh"
    return await asyncssh.connect(
        "127.0.0.1", client.server()["port"], username=login, config=None,
        client_keys=[str(state / "id_ed25519")], known_hosts=None, agent_path=None,
    )  # fmt: skip


async def test_a_terminal_has_a_size_that_changes(client: Client) -> None:
    async with await connected(client) as connection:
        process = await connection.create_process(
            "trap 'stty size' WINCH; stty size; echo $TERM; while sleep 0.1; do echo tick; done",
            term_type="vt100", term_size=(100, 30),
        )  # fmt: skip
        assert await process.stdout.readline() == "30 100\r\n"
        assert await process.stdout.readline() == "vt100\r\n"
        process.change_terminal_size(81, 25)
        while (line := await process.stdout.readline()) == "tick\r\n":
            pass
        assert line == "25 81\r\n"
        # Not while `stty` still ends: a shell goes on after a Ctrl-C that its command survived.
        assert await process.stdout.readline() == "tick\r\n"
        process.stdin.write("\x03")  # Ctrl-C, which the terminal makes a signal
        assert (await process.wait()).exit_signal is not None


async def test_signals_go_both_ways(client: Client) -> None:
    async with await connected(client) as connection:
        process = await connection.create_process(
            "trap 'echo got it' USR1; echo ready; while :; do sleep 0.1; done"
        )
        assert await process.stdout.readline() == "ready\n"
        process.send_signal("USR1")
        assert await process.stdout.readline() == "got it\n"
        process.send_signal("TERM")
        done = await process.wait()
        assert done.exit_signal is not None
        assert done.exit_signal[0] == "TERM"


async def test_two_hundred_sessions_at_once(client: Client) -> None:
    # Of a user that the machine does not know, whose shell is the small one.
    async with await connected(client, "1234@m") as connection:
        processes = [await connection.create_process("read line; echo $line") for _ in range(200)]
        for number, process in enumerate(processes):
            process.stdin.write(f"{number}\n")
        said = [await p.stdout.readline() or await p.stderr.read() for p in processes]
        assert said == [f"{number}\n" for number in range(200)]
        for process in processes:
            assert (await process.wait()).exit_status == 0
    assert client.home.json("jobs", "m") == []


def test_whoever_vanishes_ends_the_command(client: Client) -> None:
    ssh = client.start("m@vmgr", "echo $$; exec sleep 1000")
    assert ssh.stdout
    pid = ssh.stdout.readline().decode().strip()
    ssh.send_signal(signal.SIGKILL)
    ssh.communicate()
    # It ends when its session does: the machine tells when there is none of that number any more.
    wait = f"for i in $(seq 300); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    assert client.ssh("m@vmgr", wait).returncode == 0


def test_a_session_survives_the_helper(client: Client) -> None:
    ssh = client.start("m@vmgr", "cat")
    assert ssh.stdin
    assert ssh.stdout
    ssh.stdin.write(b"before\n")
    ssh.stdin.flush()
    assert ssh.stdout.readline() == b"before\n"
    client.home.kill_helper()
    ssh.stdin.write(b"after\n")
    ssh.stdin.flush()
    assert select.select([ssh.stdout], [], [], 30)[0], client.home.logs() + client.log()
    assert ssh.stdout.readline() == b"after\n"
    server = client.server()["pid"]
    out, err = ssh.communicate(timeout=60)
    assert (ssh.returncode, out, err) == (0, b"", b"")
    assert client.out("m@vmgr", "echo the same server") == "the same server\n"
    assert client.server()["pid"] == server


def test_one_connection_for_many_sessions(client: Client) -> None:
    control = f"ControlPath={client.home.root}/control"
    master = client.start("-o", control, "-M", "-N", "-v", "m@vmgr")
    assert master.stderr
    while b"Entering interactive session" not in (line := master.stderr.readline()):
        assert line, "the master ended"
    try:
        for _ in range(3):
            # Only the master has a way: a new connection would end here.
            assert (
                client.out("-o", control, "-o", "ProxyCommand=false", "m@vmgr", "echo x") == "x\n"
            )
    finally:
        client.ssh("-o", control, "-O", "exit", "m@vmgr")
        master.communicate(timeout=30)


def test_a_stopped_machine_is_started(client: Client) -> None:
    client.home.vmgr("kill", "m")
    assert client.out("m@vmgr", "echo up") == "up\n"
    assert client.home.json("info", "m")["status"] == "running"
