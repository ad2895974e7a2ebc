"""Slots and volumes on the command line; that they work is seen in tests/helper/test_volumes.py."""

from __future__ import annotations

from vmgr.vmm.hotplug import SLOTS, VmmVolume, slots, volumes


def test_slots_are_the_functions_of_one_device_above_all_others() -> None:
    arguments = slots()
    assert arguments[::2] == ["-device"] * SLOTS
    first, *others = arguments[1::2]
    assert first.startswith("pcie-root-port,id=slot0,bus=pcie.0,addr=1c.0,")
    assert "multifunction=on" in first
    assert [f"addr=1c.{n}," in one for n, one in enumerate(others, 1)] == [True] * (SLOTS - 1)


def test_what_a_saved_machine_had_is_where_it_was() -> None:
    arguments = volumes([VmmVolume("0123456789ab", 9, 5, read_only=True)])
    said = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert said["-add-fd"] == "fd=9,set=0"
    assert "filename=/dev/fdset/0,locking=on" in said["-blockdev"]
    assert said["-blockdev"].endswith("read-only=on")
    assert "bus=slot5," in said["-device"]
    serial = next(w for w in said["-device"].split(",") if w.startswith("serial="))
    assert len(serial.removeprefix("serial=")) <= 20
