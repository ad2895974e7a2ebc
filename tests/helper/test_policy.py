"""Policies where nothing would enforce them: they are refused, never without effect."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

MISSING = {
    "the device": "mount -t tmpfs none /dev/net",
    "nftables": "for f in $(ldconfig -p | sed -n 's/.*libnftables.so.1 .*=> //p'); do "
    "mount --bind /dev/null $f; done",
}


class Lacking(Home):
    """A home on a host that lacks something, as root sees it in a mount namespace of its own."""

    hide = ""

    def command(self, *arguments: str) -> list[str]:
        command = super().command(*arguments)
        if not self.hide:
            return command
        return ["unshare", "--mount", "--", "sh", "-ec", f'{self.hide}\nexec "$@"', "sh", *command]


@pytest.fixture(params=MISSING)
def lacking(shared_images: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[Home]:
    home = Lacking(short_directory(), *shared_images)
    if os.getuid() == 0:
        home.hide = MISSING[request.param]
    elif os.access("/dev/net/tun", os.W_OK) or request.param != "the device":
        pytest.skip("hiding what a network takes takes root")
    yield home
    home.close()


def test_what_cannot_be_enforced_is_refused(lacking: Home) -> None:
    for option in (["--allow", "example.org"], ["--host-access", "53/udp"]):
        refused = lacking.vmgr("create", "web", *option, check=False)
        assert refused.returncode == 1, option
        assert b"are enforced by vmgr's own network alone" in refused.stderr
        assert b"vmgr doctor" in refused.stderr
    assert lacking.json("ls") == []
    # Without, a machine runs on QEMU's own network, and stays what it is while it does.
    lacking.vmgr("create", "web", "--image", "debian-minimal", *SMALL)
    lacking.vmgr("start", "web")
    assert lacking.json("info", "web")["network"]["kind"] == "user-mode"
    for change in (["allow", "web", "example.org"], ["set", "web", "--net", "none"]):
        refused = lacking.vmgr("net", *change, check=False)
        assert refused.returncode == 1
        assert b"runs on QEMU's own network" in refused.stderr
    assert lacking.json("net", "show", "web")["allow"] is None


@pytest.mark.skipif(os.getuid() != 0, reason="hiding a device takes root")
def test_a_machine_that_has_a_list_does_not_start_without(home: Home) -> None:
    home.vmgr("create", "web", "--image", "debian-minimal", *SMALL, "--allow", "example.org")
    home.vmgr("helper", "stop")
    home.wait_for_no("vmgr.helper")
    hidden = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-ec", f'{MISSING["the device"]}\nexec "$@"', "sh",
         *home.command("start", "web")],
        env=home.environment, cwd=home.root, capture_output=True, check=False, timeout=180,
    )  # fmt: skip
    assert hidden.returncode == 1
    assert b"machine web has an allow-list or host access" in hidden.stderr
    assert home.json("info", "web")["status"] == "stopped"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--allow", "10.0.0.300"], b"is not a rule of an allow-list"),
        (["--allow", "example.org", "--net", "none"], b"does not go with it"),
        (["--host-access", "http"], b"is not a list of ports"),
        (["--host-access", "70000"], b"is not a list of ports"),
        (["--host-access", "53/sctp"], b"is not a list of ports"),
        (["--host-access", "53/udp,"], b"is not a list of ports"),
    ],
)
def test_what_cannot_be_asked(home: Home, options: list[str], words: bytes) -> None:
    refused = home.vmgr("create", "web", *options, check=False)
    assert refused.returncode == 2
    assert words in refused.stderr
