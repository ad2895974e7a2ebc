"""Requests that no client of ours makes: refused, and the helper goes on."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Home

NESTED = b'{"type":"start","x":' + b"[" * 200_000


def ask(home: Home, head: str, body: bytes = b"") -> bytes:
    """Send bytes to the helper; what it answers, until it closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(home.root / "run/vmgr/helper.sock"))
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        answer = b""
        while part := sock.recv(65_536):
            answer += part
            if b'"usage"' in answer or (b"\r\n\r\n" in answer and not head.startswith("GET")):
                break  # who reads on waits for the end of the WebSocket's goodbye
    return answer


def frame(text: bytes) -> bytes:
    """A text message of WebSocket, masked with zeros (RFC 6455, 5.2)."""
    return b"\x81\xff" + struct.pack("!Q", len(text)) + bytes(4) + text


def test_what_is_no_request_ends_no_helper(bare_home: Home) -> None:
    home = bare_home
    pid = home.helper_pid()
    post = "POST /v1/machines HTTP/1.1\nHost: x\nContent-Length: {}\n"
    assert b" 400 " in ask(home, post.format(5) + "Content-Encoding: gzip\n", b"hello")
    ports = [{"host_port": 80, "guest_port": 80, "address": "nowhere"}]
    opening = json.dumps({"machine": None, "shares": [], "ports": ports}).encode()
    head = f"POST /v1/consent HTTP/1.1\nHost: x\nContent-Length: {len(opening)}\n"
    assert b"'nowhere' is not an IP address" in ask(home, head, opening)
    nul = json.dumps({"path": "/\0x", "name": "a"}).encode()
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = "GET /v1/{} HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\n"
    upgrade += f"Sec-WebSocket-Version: 13\nSec-WebSocket-Key: {key}\n"
    for operation, text in (
        ("run", NESTED), ("images/build", NESTED), ("images/import", nul),
    ):  # fmt: skip
        answer = ask(home, upgrade.format(operation), frame(text))
        assert b" 101 " in answer
        assert b'"usage"' in answer, operation
    assert home.helper_pid() == pid
    assert not list((home.root / "state/vmgr/crashes").iterdir())


def test_a_closed_stdin_is_an_empty_one(bare_home: Home) -> None:
    words = ["sh", "-c", 'exec "$@" <&-', "sh", *bare_home.command("secret", "set", "A")]
    done = subprocess.run(
        words, env=bare_home.environment, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert b"vmgr has a bug" not in done.stderr


@pytest.mark.parametrize("follower", [("events",), ("helper", "logs", "-f")])
def test_who_follows_hears_of_its_death(bare_home: Home, follower: tuple[str, ...]) -> None:
    home = bare_home
    home.helper_pid()
    with home.start(*follower, bufsize=0) as following:
        assert following.stdout is not None
        if follower == ("events",):
            home.vmgr("config", "set", "pool.size", "0")
        else:
            assert following.stdout.readline()
        home.kill_helper()
        _, errors = following.communicate(timeout=60)
    assert following.returncode == 1
    assert errors.startswith(b"vmgr: the helper ended before the work was done.")
