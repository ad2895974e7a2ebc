"""Saved machines and another QEMU: a newer one goes on with them, one that cannot boots."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.backports import unpacked_qemu
from tests.conftest import SMALL
from tests.helper.test_fork import shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Home

pytestmark = pytest.mark.vm

# In memory only: a machine that boots has none.
COUNTER = "n=0; while sleep 0.2; do echo $((n += 1)) > /run/new; mv /run/new /run/counter; done"
GROWS = "a=$(cat /run/counter); until [ $(cat /run/counter) -gt $a ]; do sleep 0.1; done; echo yes"


@pytest.fixture(scope="module")
def newer_qemu() -> str:
    """Debian's backported QEMU; the tests that take it are skipped where it cannot be had."""
    return unpacked_qemu()


@pytest.fixture(scope="module")
def upgrading(module_home: Home) -> Iterator[Home]:
    """A home with a machine `web` that counts, started by the host's own QEMU."""
    home = module_home
    home.vmgr("create", *SMALL, "--image", "debian-minimal", "web")
    home.vmgr("start", "web")
    shell(home, "web", "echo disk > /etc/kept")
    count(home)
    yield home
    home.vmgr("rm", "-f", "web")


@pytest.fixture(autouse=True)
def own_qemu(upgrading: Home) -> Iterator[None]:
    """Each test begins and ends with the host's own QEMU."""
    yield
    upgrading.vmgr("config", "unset", "qemu.path")


def count(home: Home) -> None:
    home.vmgr("exec", "-d", "web", "--", "sh", "-c", COUNTER)
    shell(home, "web", "until [ -s /run/counter ]; do sleep 0.1; done")


def saved(home: Home) -> Path:
    (directory,) = (home.root / "state/vmgr/machines").glob("*/saved")
    return directory


def change_record(home: Home, **changes: Any) -> None:
    """What is known of the suspended machine, changed: as if another QEMU had saved it."""
    path = saved(home) / "saved.json"
    record = json.loads(path.read_text())
    for name, value in changes.items():
        (record if name in record else record["state"])[name] = value
    path.write_text(json.dumps(record))


def started_anew(home: Home, why: str) -> None:
    """`web` boots instead, and says once what that costs; nothing of what was saved is left."""
    said = home.vmgr("resume", "web").stderr.decode()
    assert said.startswith("vmgr: machine web was started anew: ")
    assert why in said
    assert said.endswith("; its disk is as it was, what ran in it is lost\n")
    assert said.count("\n") == 1
    assert home.vmgr("ls").stderr == b""
    assert shell(home, "web", "cat /etc/kept; cat /run/counter || echo gone") == ["disk", "gone"]
    info = home.json("info", "web")
    assert (info["status"], info["started_from"]) == ("running", "boot")
    assert not list((home.root / "state/vmgr/machines").glob("*/saved"))
    assert not list((home.root / "state/vmgr/machines").glob("*/.saved*"))
    assert len(home.vmms()) == 1
    failed_event(home, why)
    count(home)


def failed_event(home: Home, why: str) -> None:
    """Wait for the event that says so; the test's own deadline ends a wait for nothing."""
    events = home.start("events", "--json", "--since", "0")
    assert events.stdout is not None
    for line in events.stdout:
        event = json.loads(line)
        if event["kind"] == "machine.resume-failed" and why in event["data"]["reason"]:
            assert event["machine"] == "web"
            break
    else:
        pytest.fail("the events have ended")
    events.kill()
    events.communicate()


def test_a_newer_qemu_goes_on(upgrading: Home, newer_qemu: str) -> None:
    home = upgrading
    before = home.json("info", "web")
    home.vmgr("suspend", "web")
    home.vmgr("config", "set", "qemu.path", newer_qemu)
    assert shell(home, "web", GROWS) == ["yes"]
    after = home.json("info", "web")
    assert after["boot_id"] == before["boot_id"]
    assert after["started_from"] == "suspended"
    # It says what it has: the machine of the old one, in the new one.
    assert after["vmm"]["machine_type"] == before["vmm"]["machine_type"]
    assert after["vmm"]["qemu"] != before["vmm"]["qemu"]
    # It may be suspended and go on again.
    home.vmgr("suspend", "web")
    assert shell(home, "web", GROWS) == ["yes"]
    # Back again, as the machine is still of a type that the old one knows.
    home.vmgr("suspend", "web")
    home.vmgr("config", "unset", "qemu.path")
    assert shell(home, "web", f"cat /etc/kept; {GROWS}") == ["disk", "yes"]
    last = home.json("info", "web")
    assert (last["boot_id"], last["vmm"]["qemu"]) == (before["boot_id"], before["vmm"]["qemu"])


def test_what_a_newer_qemu_saved_as_its_own(upgrading: Home, newer_qemu: str) -> None:
    """The older one has no such machine, says so, and boots."""
    home = upgrading
    home.vmgr("stop", "web")
    home.vmgr("config", "set", "qemu.path", newer_qemu)
    home.vmgr("start", "web")
    count(home)
    info = home.json("info", "web")["vmm"]
    # It goes on in its own kind as well, before it does not in the other.
    home.vmgr("suspend", "web")
    assert shell(home, "web", GROWS) == ["yes"]
    home.vmgr("suspend", "web")
    home.vmgr("config", "unset", "qemu.path")
    started_anew(
        home, f"it was saved by QEMU {info['qemu']} as a {info['machine_type']}, which QEMU "
    )


def test_a_machine_type_that_is_no_more(upgrading: Home) -> None:
    upgrading.vmgr("suspend", "web")
    change_record(upgrading, machine_type="pc-q35-2.4-gone", qemu="2.4.0")
    started_anew(upgrading, "it was saved by QEMU 2.4.0 as a pc-q35-2.4-gone, which QEMU ")
    assert upgrading.json("info", "web")["vmm"]["machine_type"] != "pc-q35-2.4-gone"


def test_devices_that_qemu_cannot_read(upgrading: Home) -> None:
    home = upgrading
    home.vmgr("suspend", "web")
    (saved(home) / "devices").write_bytes(b"no device state")
    # Sound by its checksum, and another QEMU's.
    change_record(home, devices_checksum=zlib.crc32(b"no device state"), qemu="9.9.9")
    started_anew(home, "cannot go on from what QEMU 9.9.9 saved: ")
