from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.config import SETTINGS
from vmgr.errors import UsageError


def test_every_default_is_a_value_that_can_be_typed_and_stored() -> None:
    for setting in SETTINGS.values():
        default = setting.default()
        assert setting.kind.check(default) == default
        assert setting.kind.parse(str(setting.kind.show(default))) == default
        assert setting.kind.check(setting.kind.store(default)) == default


def test_defaults_fit_the_host() -> None:
    assert 1 <= int(SETTINGS["machine.cpus"].default()) <= len(os.sched_getaffinity(0))
    memory = int(SETTINGS["machine.memory"].default())
    assert 256 << 20 <= memory <= 1 << 30


@pytest.mark.parametrize(
    ("key", "text", "value", "stored"),
    [
        ("machine.memory", "2G", 2 << 30, "2G"),
        ("machine.memory", "1.5 GiB", 1536 << 20, "1536M"),
        ("machine.memory", "536870912", 512 << 20, "512M"),
        ("machine.disk", "67108865", 67_108_865, "67108865"),
        ("machine.cpus", "4", 4, 4),
        ("boot.timeout", "2m", 120.0, 120),
        ("boot.timeout", "0.7", 0.7, 0.7),
        ("stop.agent_timeout", "0", 0.0, 0),
        ("stop.acpi_timeout", "1h", 3600.0, 3600),
        ("image.default", "debian:12", "debian:12", "debian:12"),
        ("qemu.path", "/opt/q,e/mu", "/opt/q,e/mu", "/opt/q,e/mu"),
        ("qemu.path", "", "", ""),
    ],
)
def test_what_people_type(key: str, text: str, value: Any, stored: Any) -> None:
    kind = SETTINGS[key].kind
    assert kind.parse(text) == value
    assert kind.store(value) == stored
    assert kind.check(stored) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("machine.memory", "lots"), ("machine.memory", "63M"), ("machine.memory", ""),
        ("machine.cpus", "0"), ("machine.cpus", "257"), ("machine.cpus", "2.5"),
        ("machine.cpus", "-1"), ("machine.cpus", "\u0663"), ("boot.timeout", "soon"),
        ("boot.timeout", "-1"), ("boot.timeout", "0"), ("boot.timeout", "inf"),
        ("boot.timeout", "2d"), ("stop.acpi_timeout", "25h"), ("image.default", ""),
        ("image.default", "a b"), ("image.default", "../x" * 99), ("qemu.path", "qemu"),
        ("qemu.path", "/a\0b"),
    ],
)  # fmt: skip
def test_what_means_nothing(key: str, text: str) -> None:
    with pytest.raises(UsageError):
        SETTINGS[key].kind.parse(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("machine.cpus", True), ("machine.cpus", 2.0), ("machine.cpus", "2"),
        ("machine.memory", 1.5), ("machine.memory", True), ("machine.memory", [1]),
        ("boot.timeout", float("nan")), ("boot.timeout", float("inf")), ("boot.timeout", False),
        ("image.default", 3), ("qemu.path", {}),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_in_the_file(key: str, value: object) -> None:
    with pytest.raises(UsageError):
        SETTINGS[key].kind.check(value)


@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=30))
def test_any_text_is_a_value_or_a_usage_error(key: str, text: str) -> None:
    kind = SETTINGS[key].kind
    try:
        value = kind.parse(text)
    except UsageError:
        return
    assert kind.check(kind.store(value)) == value
    assert kind.parse(str(kind.show(value))) == value
