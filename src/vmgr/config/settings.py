"""The table of settings: name, kind, default, meaning.

A kind reads what a person typed (`parse`), checks what stands in the file (`check`) and says which
of TOML's values is written for it (`store`). Sizes and durations are kept as they were typed.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, get_args

from vmgr.api.models import MACHINE_NAME_PATTERN, SandboxLevel
from vmgr.errors import UsageError
from vmgr.machine.ports import PortRule
from vmgr.machine.sizes import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SETTINGS", "Setting", "Value"]

Value = int | float | str

MIB: Final = 1 << 20
GIB: Final = 1 << 30
_DAY: Final = 86_400.0
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(s|m|h)?")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")


class Kind(Protocol):
    """What values a setting takes."""

    def parse(self, text: str) -> Value:
        """The value that a person means by `text`; `UsageError` when it is none."""
        ...

    def check(self, value: object) -> Value:
        """The value that a TOML value means; `UsageError` when it is none."""
        ...

    def store(self, value: Value) -> Value:
        """What is written to the file."""
        ...

    def show(self, value: Value) -> Value:
        """What is shown: something that `parse` takes, or a number that means the same."""
        ...


@dataclass(frozen=True)
class Count:
    """A whole number."""

    low: int
    high: int

    def parse(self, text: str) -> int:
        """See `Kind`."""
        if not _NUMBER.fullmatch(text):
            raise UsageError(f"{text[:40]!r} is not a whole number")
        return self.check(int(text))

    def check(self, value: object) -> int:
        """See `Kind`."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{value!r} is not a whole number")
        if not self.low <= value <= self.high:
            raise UsageError(f"{value} is not between {self.low} and {self.high}")
        return value

    def store(self, value: Value) -> Value:
        """See `Kind`."""
        return value

    def show(self, value: Value) -> Value:
        """See `Kind`."""
        return value


@dataclass(frozen=True)
class Size:
    """Bytes; in the file a text like `2G`, or a number of bytes."""

    low: int
    high: int = 1 << 50

    def parse(self, text: str) -> int:
        """See `Kind`."""
        return self.check(text)

    def check(self, value: object) -> int:
        """See `Kind`."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UsageError(f"{value!r} is not a size", next_step="write it like 512M or 2G")
        size = parse_size(value) if isinstance(value, str) else value
        if not self.low <= size <= self.high:
            raise UsageError(
                f"{value} is not between {format_size(self.low)} and {format_size(self.high)}"
            )
        return size

    def store(self, value: Value) -> Value:
        """See `Kind`."""
        return self.show(value)

    def show(self, value: Value) -> Value:
        """See `Kind`. The largest unit that says it exactly."""
        size = int(value)
        for unit, letter in ((GIB, "G"), (MIB, "M"), (1 << 10, "K")):
            if size >= unit and size % unit == 0:
                return f"{size // unit}{letter}"
        return str(size)


@dataclass(frozen=True)
class Duration:
    """Seconds; typed as `30`, `1.5`, `30s`, `2m` or `1h`."""

    low: float = 0.0
    high: float = _DAY

    def parse(self, text: str) -> float:
        """See `Kind`."""
        match = _DURATION.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"{text[:40]!r} is not a duration", next_step="write it like 30, 1.5, 30s or 2m"
            )
        return self.check(float(match[1]) * {"m": 60, "h": 3600}.get(match[2], 1))

    def check(self, value: object) -> float:
        """See `Kind`."""
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise UsageError(f"{value!r} is not a duration")
        if not self.low <= value <= self.high:
            raise UsageError(f"{value:g} s is not between {self.low:g} s and {self.high:g} s")
        return float(value)

    def store(self, value: Value) -> Value:
        """See `Kind`."""
        return int(value) if float(value).is_integer() else value

    def show(self, value: Value) -> Value:
        """See `Kind`."""
        return self.store(value)


class _Text:
    """A text, stored as it is."""

    def store(self, value: Value) -> Value:
        """See `Kind`."""
        return value

    def show(self, value: Value) -> Value:
        """See `Kind`."""
        return value

    def parse(self, text: str) -> str:
        """See `Kind`."""
        return self.check(text)

    def check(self, value: object) -> str:
        """See `Kind`."""
        raise NotImplementedError


class ImageName(_Text):
    """An image's name or digest; whether it is there is seen when it is used."""

    def check(self, value: object) -> str:
        """See `Kind`."""
        if not isinstance(value, str) or not _IMAGE.fullmatch(value):
            raise UsageError(
                f"{str(value)[:40]!r} is not an image's name", next_step="see `vmgr image ls`"
            )
        return value


class MachineNames(_Text):
    """Names of machines; whether they are there is seen when it is used."""

    def check(self, value: object) -> str:
        """See `Kind`."""
        names = value.split() if isinstance(value, str) else None
        if names is None or not all(re.fullmatch(MACHINE_NAME_PATTERN, name) for name in names):
            raise UsageError(
                f"{str(value)[:80]!r} are not names of machines", next_step="write it like: web db"
            )
        return " ".join(names)


class Program(_Text):
    """An absolute path, or nothing: found on the PATH."""

    def check(self, value: object) -> str:
        """See `Kind`."""
        if not isinstance(value, str) or "\0" in value or value[:1] not in {"", "/"}:
            raise UsageError(f"{str(value)[:80]!r} is not an absolute path")
        return value


class Locale(_Text):
    """A locale's name, `host` or nothing."""

    def check(self, value: object) -> str:
        """See `Kind`."""
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.@-]{0,64}", value):
            raise UsageError(
                f"{str(value)[:40]!r} is not a locale", next_step="write it like: de_DE.UTF-8"
            )
        return value


class Ports(_Text):
    """On, off or a list of ports."""

    def check(self, value: object) -> str:
        """See `Kind`."""
        return PortRule.parse(str(value)[:1_000]).text


@dataclass(frozen=True)
class Choice(_Text):
    """One of some words."""

    words: tuple[str, ...]

    def check(self, value: object) -> str:
        """See `Kind`."""
        if not isinstance(value, str) or value not in self.words:
            raise UsageError(f"{str(value)[:40]!r} is none of {', '.join(self.words)}")
        return value


@dataclass(frozen=True)
class Setting:
    """One setting. `default` is computed, since some depend on this host."""

    key: str
    kind: Kind
    default: Callable[[], Value]
    description: str


def _cpus() -> int:
    return min(2, len(os.sched_getaffinity(0)))


def _memory() -> int:
    """1 GiB, but no more than a quarter of a small host, in steps of 64 MiB."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(256 * MIB, min(GIB, host // 4 // (64 * MIB) * (64 * MIB)))


_ON_OFF: Final = Choice(("on", "off"))

_TABLE: Final = (
    Setting("authorize.ports", Choice(("ask", "allow")), lambda: "ask",
            "Whether you are asked before a port of a machine is open to other computers"),
    Setting("authorize.shares", Choice(("ask", "allow")), lambda: "ask",
            "Whether you are asked before a directory outside your home is shared"),
    Setting("autostart.machines", MachineNames(), lambda: "",
            "Machines that start with your session, or when the helper first starts in it, "
            "separated by spaces"),
    Setting("boot.silence_timeout", Duration(1), lambda: 20.0,
            "Seconds without a sign of life after which a boot is done once more"),
    Setting("boot.timeout", Duration(0.1), lambda: 120.0,
            "Seconds after which a machine that is not ready is given up"),
    Setting("host.certificates", _ON_OFF, lambda: "on",
            "Whether machines trust the certificates that were added to this computer's"),
    Setting("host.git", _ON_OFF, lambda: "on",
            "Whether git in named machines knows your name and e-mail address"),
    Setting("host.proxies", _ON_OFF, lambda: "on",
            "Whether commands in machines use this computer's proxies (http_proxy and so on)"),
    Setting("host.timezone", _ON_OFF, lambda: "on",
            "Whether named machines are in this computer's time zone"),
    Setting("idle.suspend_after", Duration(0), lambda: 0.0,
            "Seconds after which a named machine in which nothing happens is suspended; 0: never"),
    Setting("image.default", ImageName(), lambda: "debian",
            "The image of machines that name none"),
    Setting("machine.cpus", Count(1, 256), _cpus, "CPUs of a new machine"),
    Setting("machine.disk", Size(64 * MIB), lambda: 64 * GIB,
            "Size of a new machine's disk; it takes only what is written to it"),
    Setting("machine.memory", Size(64 * MIB), _memory, "Memory of a new machine"),
    Setting("memory.overcommit", Count(1, 10_000), lambda: 200,
            "Memory that running machines may have together, in percent of this computer's"),
    Setting("names.port", Count(0, 65_535), lambda: 5354,
            "The port where this computer can ask for NAME.vmgr.internal (see doctor); 0: none "
            "(from the helper's next start)"),
    Setting("network.access", Choice(("full", "internet", "none")), lambda: "full",
            "What new named machines may reach: all, the internet alone, nothing"),
    Setting("network.egress", Choice(("auto", "slirp4netns", "pasta")), lambda: "auto",
            "What leads machines to the internet (from its next start)"),
    Setting("network.fallback", Choice(("isolated", "open", "off")), lambda: "isolated",
            "QEMU's own network where there is no better: without or with the internet (and then "
            "this computer's loopback too), or not at all"),
    Setting("notifications.show", Choice(("on", "off")), lambda: "on",
            "Whether the desktop shows what happens to machines: crashes, a disk that fills up"),
    Setting("pool.keep", Duration(1), lambda: 600.0,
            "Seconds after which machines that wait for a run and were not used go"),
    Setting("pool.memory_percent", Count(1, 100), lambda: 25,
            "The most of this computer's memory that they may take, in percent"),
    Setting("pool.size", Count(0, 32), lambda: 0,
            "How many machines wait, running, for the next run of their kind"),
    Setting("ports.auto", Ports(), lambda: "on",
            "Ports on which something in a named machine listens appear on this computer's "
            "loopback: on, off, or only those of a list like 8080,3000-3999,5353/udp"),
    Setting("qemu.path", Program(), lambda: "", "The QEMU program; empty: the one on the PATH"),
    Setting("sandbox.require", Choice(get_args(SandboxLevel)), lambda: "filter",
            "The weakest sandbox that a machine may run in: filter, namespaces or full"),
    Setting("secrets.store", Choice(("auto", "keyring", "file")), lambda: "auto",
            "Where secrets are kept: the desktop's keyring (Secret Service) where there is one, "
            "there alone, or in files that only you can read"),
    Setting("shutdown.action", Choice(("suspend", "stop", "keep")), lambda: "suspend",
            "What becomes of machines when your session ends or this computer is shut down, where "
            "systemd looks after the helper; keep: nothing is done, so they end as by a power cut"),
    Setting("ssh.agent", MachineNames(), lambda: "",
            "Machines whose SSH sessions may use the client's ssh-agent, separated by spaces"),
    Setting("ssh.port", Count(0, 65_535), lambda: 0,
            "Port of the SSH server on this computer's loopback; 0: one that is free, and is kept"),
    Setting("ssh.start", Choice(("demand", "helper")), lambda: "demand",
            "When the SSH server starts: with the first ssh, or with the helper"),
    Setting("stop.acpi_timeout", Duration(), lambda: 20.0,
            "Seconds a machine gets after its power button was pressed; 0: not pressed"),
    Setting("stop.agent_timeout", Duration(), lambda: 30.0,
            "Seconds a machine gets to power off in an orderly way; 0: not asked"),
    Setting("template.max", Count(0, 64), lambda: 4,
            "How many templates are kept; 0: machines always boot"),
    Setting("template.space", Size(64 * MIB), lambda: 4 * GIB,
            "Disk space that templates may take"),
    Setting("user.default", Choice(("me", "root")), lambda: "me",
            "As whom commands run in new named machines: a user of your name, or root"),
    Setting("user.locale", Locale(), lambda: "host",
            "That user's locale: host (as on this computer, where the machine has it), empty (the "
            "image's), or one like de_DE.UTF-8"),
    Setting("user.shell", Program(), lambda: "",
            "That user's login shell; empty: yours, where the machine has it, else bash or sh"),
)  # fmt: skip

SETTINGS: Final = {setting.key: setting for setting in _TABLE}
