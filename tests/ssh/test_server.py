"""The server itself: who comes in, what strangers can do, how it starts and ends."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
import pytest
from tests.conftest import kill_and_wait, wait_for_end
from tests.ssh.conftest import client_of

from vmgr.ssh.session import accepted_environment

if TYPE_CHECKING:
    from tests.conftest import Home
    from tests.ssh.conftest import Client


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", status)
    assert match
    return int(match[1]) * 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_keys_and_configuration_are_private_and_stay(bare_client: Client) -> None:
    directory = bare_client.home.root / "state/vmgr/ssh"
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes.pop("wake") == 0o700
    assert set(modes.values()) == {0o600}
    before = {path: path.read_bytes() for path in directory.iterdir()}
    kill_and_wait(bare_client.server()["pid"])  # SIGKILL
    again = client_of(bare_client.home)
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    kill_and_wait(again.server()["pid"], signal.SIGTERM)
    assert not (bare_client.home.root / "run/vmgr/ssh.json").exists()
    # ssh itself starts it again, on the same port. There is no machine, but somebody to say so.
    assert b"no machine named web" in bare_client.ssh("web@vmgr").stderr
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_the_server_is_audited(bare_client: Client) -> None:
    report = bare_client.home.json("doctor", "--audit")
    found = [process for process in report["processes"] if process["role"] == "ssh"]
    assert [process["pid"] for process in found] == [bare_client.server()["pid"]]
    assert report["problems"] == []


def test_it_ends_with_a_helper_that_stops(bare_client: Client) -> None:
    server = bare_client.server()["pid"]
    bare_client.home.vmgr("helper", "stop")
    assert not Path(f"/proc/{server}").exists()


def test_it_starts_with_the_helper_where_that_is_wanted(bare_home: Home) -> None:
    bare_home.vmgr("config", "set", "ssh.start", "helper")
    bare_home.vmgr("helper", "stop")
    bare_home.helper_pid()
    # Whoever asks is told of the one that is being started, or has been.
    bare_home.vmgr("ssh-config", "--start")
    assert len(bare_home.processes("vmgr.ssh")) == 1


async def test_one_of_another_version_gives_its_place_and_ends_when_it_is_left(
    bare_client: Client,
) -> None:
    before = bare_client.server()
    state = bare_client.home.root / "state/vmgr/ssh"
    async with asyncssh.connect(
        "127.0.0.1", before["port"], username="m", config=None, known_hosts=None,
        client_keys=[str(state / "id_ed25519")], agent_path=None,
    ) as connection:  # fmt: skip
        record = bare_client.home.root / "run/vmgr/ssh.json"
        record.write_text(json.dumps({**before, "version": "0.0.1"}))
        await asyncio.to_thread(bare_client.home.vmgr, "ssh-config", "--start")
        after = bare_client.server()
        assert after["pid"] != before["pid"]
        assert after["port"] == before["port"]
        answer = await connection.run("true")  # the old one still serves: there is no machine
        assert "no machine named m" in str(answer.stderr)
    await asyncio.to_thread(wait_for_end, before["pid"])
    assert bare_client.server() == after


def test_only_the_loopback_is_listened_on(bare_client: Client) -> None:
    with socket.create_connection(("127.0.0.1", bare_client.server()["port"])) as connection:
        assert connection.recv(8) == b"SSH-2.0-"
    sockets = Path(f"/proc/{bare_client.server()['pid']}/net/tcp").read_text()
    port = f"{bare_client.server()['port']:04X}"
    listening = {line.split()[1] for line in sockets.splitlines()[1:] if line.split()[3] == "0A"}
    assert {where for where in listening if where.endswith(f":{port}")} == {f"0100007F:{port}"}


@pytest.mark.parametrize("method", ["password", "keyboard-interactive", "none"])
def test_nothing_but_the_key_lets_in(bare_client: Client, method: str) -> None:
    options = ("-o", f"PreferredAuthentications={method}", "-o", "NumberOfPasswordPrompts=1")
    done = bare_client.ssh(*options, "m@vmgr", "true")
    assert done.returncode == 255
    assert done.stderr.decode().strip().endswith("Permission denied (publickey).")


async def test_another_key_is_refused(bare_client: Client) -> None:
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            "127.0.0.1", bare_client.server()["port"], username="m", config=None,
            client_keys=[asyncssh.generate_private_key("ssh-ed25519")], known_hosts=None,
            agent_path=None,
        )  # fmt: skip


def noise(generator: random.Random) -> bytes:
    """What a malformed client says: a greeting or none, then packets that are not."""
    greeting = generator.choice([b"SSH-2.0-x\r\n", b"SSH-1.5-x\r\n", b"GET / HTTP/1.0\r\n", b""])
    body = generator.randbytes(generator.randrange(4_000))
    length = generator.choice([0, 1, len(body) + 1, 35_000, 0x7FFFFFFF, 0xFFFFFFFF])
    kind = generator.choice([20, 21, 30, 31, 50, 90, generator.randrange(256)])
    return greeting + struct.pack(">IBB", length, generator.randrange(256), kind) + body


def test_strangers_cost_little(bare_client: Client) -> None:
    server, port = bare_client.server()["pid"], bare_client.server()["port"]
    helper = bare_client.home.helper_pid()
    generator = random.Random(1)  # noqa: S311 (the same noise each time)

    def talk(count: int) -> None:
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.settimeout(60)
                try:
                    stranger.sendall(noise(generator))
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
                except OSError:  # it hung up on us
                    pass

    talk(50)  # what is imported and cached at first
    memory, files = resident(server), open_files(server)
    helper_memory, helper_cpu = resident(helper), cpu_seconds(helper)
    talk(300)
    assert resident(server) - memory < 8 << 20
    assert open_files(server) <= files + 2
    # The helper has no part in it.
    assert cpu_seconds(helper) - helper_cpu < 0.1
    assert resident(helper) - helper_memory < 4 << 20
    assert b"no machine named web" in bare_client.ssh("web@vmgr").stderr


def test_endless_packets_of_a_stranger_are_not_kept(bare_client: Client) -> None:
    server, port = bare_client.server()["pid"], bare_client.server()["port"]
    before = resident(server)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(60)
        stranger.sendall(b"SSH-2.0-x\r\n\x7f\xff\xff\xff")
        with pytest.raises(OSError):  # noqa: PT011 (which of two is a matter of timing)
            stranger.sendall(bytes(64 << 20))
    assert resident(server) - before < 8 << 20


def test_strangers_are_counted(bare_client: Client) -> None:
    port = bare_client.server()["port"]
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
    try:
        for stranger in strangers:
            stranger.settimeout(60)
            assert stranger.recv(4) == b"SSH-"
        with socket.create_connection(("127.0.0.1", port)) as late:
            late.settimeout(60)
            assert late.recv(1024) == b""
    finally:
        for stranger in strangers:
            stranger.close()


def test_what_of_the_environment_is_accepted() -> None:
    asked = {
        b"LANG": b"de_DE.UTF-8", b"LC_TIME": b"C", b"PATH": b"/x", b"LD_PRELOAD": b"/x",
        b"LC_\xff": b"x", b"LC_A=B": b"x", b"LC_LONG": b"x" * 5_000, b"TZ": b"a\0b",
    }  # fmt: skip
    assert accepted_environment(asked) == {"LANG": "de_DE.UTF-8", "LC_TIME": "C"}
    many = {b"LC_%d" % number: b"" for number in range(1_000)}
    assert len(accepted_environment(many)) == 64
