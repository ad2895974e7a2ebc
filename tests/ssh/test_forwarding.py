"""Connections through a machine, both ways, and the client's ssh-agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import asyncssh
import pytest
from tests.ssh.test_sessions import connected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.ssh.conftest import Client

pytestmark = pytest.mark.vm


@pytest.fixture
def upper() -> Iterator[int]:
    """A server on this computer: it answers in capitals when its client has said all."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as file:
                file.write(file.read().upper())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


async def test_from_here_into_the_machine_and_back_out(client: Client, upper: int) -> None:
    """A listener in the machine that leads here, reached by a connection from within it."""
    async with await connected(client) as connection:
        listener = await connection.forward_remote_port("localhost", 0, "127.0.0.1", upper)
        reader, writer = await connection.open_connection("localhost", listener.get_port())
        text = os.urandom(500_000).hex().encode()
        writer.write(text)
        writer.write_eof()
        assert await reader.read() == text.upper()
        writer.close()
        listener.close()
        await listener.wait_closed()


def test_the_machine_reaches_a_port_here(client: Client, upper: int) -> None:
    ask = "exec 3<>/dev/tcp/127.0.0.1/9123; echo hello >&3; head -c 0 <&3"
    # bash cannot end one direction of a connection; perl can.
    perl = (
        "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(q(127.0.0.1:9123)); print $s q(hi);"
        " $s->flush; $s->shutdown(1); print <$s>'"
    )
    forward = f"9123:127.0.0.1:{upper}"
    assert client.out("-R", forward, "m@vmgr", f"timeout 1 bash -c '{ask}'; {perl}") == "HI"


def test_a_port_that_is_taken_is_told(client: Client, upper: int) -> None:
    options = ("-o", "ExitOnForwardFailure=yes", "-R", f"9124:127.0.0.1:{upper}")
    first = client.start(*options, "m@vmgr", "echo up; read x")
    assert first.stdout
    assert first.stdout.readline() == b"up\n"
    done = client.ssh(*options, "m@vmgr", "true")
    assert done.returncode == 255
    assert b"remote port forwarding failed" in done.stderr
    first.communicate(b"\n", timeout=60)
    # With its connection the listener has gone too.
    assert client.ssh(*options, "m@vmgr", "true").returncode == 0


def test_standard_streams_as_a_connection(client: Client) -> None:
    """`ssh -W`, of which ProxyJump is made; the port is the machine's own."""
    listen = "perl -MIO::Socket::INET -e '$l = IO::Socket::INET->new(LocalAddr => q(127.0.0.1),"
    listen += " LocalPort => 9125, Listen => 1); print qq(up\\n); $| = 1; print q();"
    listen += " $c = $l->accept; print $c q(machine)'"
    listener = client.start("m@vmgr", listen)
    assert listener.stdout
    assert listener.stdout.readline() == b"up\n"
    assert client.out("-W", "127.0.0.1:9125", "m@vmgr") == "machine"
    listener.communicate(timeout=60)
    refused = client.ssh("-W", "127.0.0.1:9125", "m@vmgr")
    assert refused.returncode == 255
    assert b"127.0.0.1: Connection refused" in refused.stderr
    unknown = client.ssh("-W", "no-such-host.invalid:1", "m@vmgr")
    assert b"the machine knows no such host" in unknown.stderr


async def test_sockets_with_names(client: Client, tmp_path: Path) -> None:
    async with await connected(client) as connection:
        reached, there = tmp_path / "here", "/tmp/there"  # noqa: S108 (in the machine)

        async def hello(_reader: object, writer: asyncssh.SSHWriter[bytes]) -> None:
            writer.write(b"hello")
            writer.close()

        server = await asyncio.start_unix_server(hello, reached)  # type: ignore[arg-type]
        listener = await connection.forward_remote_path(there, str(reached))
        reader, writer = await connection.open_unix_connection(there)
        assert await reader.read() == b"hello"
        writer.close()
        listener.close()
        await listener.wait_closed()
        server.close()
        with pytest.raises(asyncssh.ChannelOpenError, match="No such file"):
            await connection.open_unix_connection(
                "/tmp/nothing"  # noqa: S108 (in the machine)
            )


@pytest.fixture
def agent(client: Client, tmp_path: Path) -> Iterator[None]:
    """An ssh-agent of the client's, with one key."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is not installed")
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    client.home.environment["SSH_AUTH_SOCK"] = str(path)
    assert client.run("ssh-keygen", "-qt", "ed25519", "-N", "", "-C", "of the client", "-f",
                      str(tmp_path / "key")).returncode == 0  # fmt: skip
    assert client.run("ssh-add", "-q", str(tmp_path / "key")).returncode == 0
    yield
    del client.home.environment["SSH_AUTH_SOCK"]
    process.send_signal(signal.SIGTERM)
    process.communicate()


LIST_KEYS = (
    "perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Peer => $ENV{SSH_AUTH_SOCK});"
    " syswrite $s, pack(q(NC), 1, 11); read $s, $h, 4; read $s, $b, unpack(q(N), $h); print $b'"
)


@pytest.mark.usefixtures("agent")
def test_the_ssh_agent_of_the_client(client: Client) -> None:
    ask = 'echo "agent: $SSH_AUTH_SOCK"'
    # A machine gets at it only when the person said so, and the client asks for it.
    assert client.out("-A", "m@vmgr", ask) == "agent: \n"
    client.home.vmgr("config", "set", "ssh.agent", "other m")
    try:
        assert client.out("m@vmgr", ask) == "agent: \n"
        assert "of the client" in client.ssh("-A", "m@vmgr", LIST_KEYS).stdout.decode(
            errors="replace"
        )
        # Only the session's user may use it, and it goes with the connection.
        assert client.out("-A", "m@vmgr", 'stat -c %a "$(dirname $SSH_AUTH_SOCK)"') == "700\n"
    finally:
        client.home.vmgr("config", "unset", "ssh.agent")
    wait = "for i in $(seq 300); do ls -d /tmp/vmgr-agent-* 2>/dev/null || exit 0; sleep 0.1; done"
    assert client.ssh("m@vmgr", f"{wait} >&2; exit 1").returncode == 0
