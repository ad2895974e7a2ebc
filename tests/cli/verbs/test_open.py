"""`vmgr open`: which port is meant, and a browser that nobody ends."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from vmgr.api.models import PortForward
from vmgr.cli.verbs import open as verb

if TYPE_CHECKING:
    from pathlib import Path


def port(guest: int, host: int | None = None, **facts: object) -> PortForward:
    return PortForward(guest_port=guest, host_port=host or guest, **{"open": True, **facts})  # type: ignore[arg-type]


def test_the_likeliest_is_taken() -> None:
    ports = [port(22), port(5000), port(8080), port(53, protocol="udp")]
    assert verb.choose(ports, None) == port(8080)
    assert verb.choose(ports, 5000) == port(5000)
    assert verb.choose(ports, 53) is None
    assert verb.choose([port(80, open=False)], None) is None
    assert verb.choose([port(80, open=False)], None, asleep=True) is not None
    assert verb.choose([], None) is None


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (port(80), "http://localhost/"),
        (port(3000, 3001), "http://localhost:3001/"),
        (port(443), "https://localhost/"),
        (port(8443, 9443), "https://localhost:9443/"),
        (port(80, address="127.118.0.10"), "http://127.118.0.10/"),
        (port(80, 8080, address="fd00::1"), "http://[fd00::1]:8080/"),
    ],
)
def test_urls(given: PortForward, url: str) -> None:
    assert verb.url(given) == url


def test_a_browser_goes_on_when_what_started_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    opener = tmp_path / "xdg-open"
    # Starts the browser in its own process group and ends, as it does where no desktop helps.
    opener.write_text(f'#!/bin/sh\n(cat {tmp_path}/go; echo "$1" > {fifo}) &\n')
    opener.chmod(0o700)
    os.mkfifo(tmp_path / "go")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    verb._show("http://localhost/")
    (tmp_path / "go").write_text("on\n")
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([reading], [], [], 60)[0]
        assert os.read(reading, 100) == b"http://localhost/\n"
    finally:
        os.close(reading)
