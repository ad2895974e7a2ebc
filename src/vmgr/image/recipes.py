"""Images that vmgr can build by itself.

A recipe is a package list and what to change in the result. The changes are made while the root
file system passes by as a tar stream (`vmgr.image.tarball`), so nothing of ours runs in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmgr.artifact.sources import Source

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["RECIPES", "AddedFile", "AddedLink", "Recipe", "additions"]


@dataclass(frozen=True)
class AddedFile:
    """A regular file that replaces what the packages brought."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    mtime: int = 0


@dataclass(frozen=True)
class AddedLink:
    """A symbolic link that replaces what the packages brought."""

    path: str
    target: str


@dataclass(frozen=True)
class Recipe:
    """How to build an image from Debian's packages."""

    description: str
    packages: tuple[str, ...]
    drop: tuple[str, ...]
    """Shell patterns of paths to leave out; what is below a dropped directory goes with it."""
    systemd: bool
    env: dict[str, str] = field(default_factory=dict)


_COMMON: Final = (
    "bash-completion", "bzip2", "ca-certificates", "curl", "file", "iproute2", "iputils-ping",
    "kmod", "less", "nano", "netbase", "procps", "psmisc", "sudo", "xz-utils",
)  # fmt: skip
_SYSTEMD: Final = (
    "dbus", "dbus-user-session", "libnss-myhostname", "libnss-systemd", "libpam-systemd", "systemd",
    "systemd-sysv", "udev",
)  # fmt: skip
_MINIMAL: Final = ("ca-certificates", "iproute2", "kmod", "procps")

_DROP: Final = (
    # Made anew in every machine: an identity that is in the image is shared by all of them.
    "etc/hostname",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    # Of the build, not of the machine.
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "var/cache/apt/*.bin",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/log/alternatives.log",
    "var/log/apt/*",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
    # Work that a machine should not do on its own minutes after it started; `systemctl enable` it.
    "etc/systemd/system/timers.target.wants/apt-daily*.timer",
    "etc/systemd/system/timers.target.wants/e2scrub_all.timer",
    "etc/systemd/system/multi-user.target.wants/e2scrub_reap.service",
)

RECIPES: Final[dict[str, Recipe]] = {
    "debian": Recipe(
        "Debian, the host's release, with systemd",
        _SYSTEMD + _COMMON,
        _DROP,
        systemd=True,
        env={"LANG": "C.UTF-8"},
    ),
    "debian-minimal": Recipe(
        "Debian, the host's release, small and without an init of its own",
        _MINIMAL,
        _DROP,
        systemd=False,
        env={"LANG": "C.UTF-8"},
    ),
}

_UPDATED: Final = (
    "# An empty stamp: the files of this image are as its packages left them.\nTIMESTAMP_NSEC={}\n"
)


def additions(recipe: Recipe, sources: Sequence[Source]) -> list[AddedFile | AddedLink]:
    """What to put into the root file system beyond the packages' files.

    Args:
        recipe: what is being built.
        sources: where its packages came from; the machine's own apt goes on with them.
    """
    # Later than anything in /usr, or ConditionNeedsUpdate= sets off hwdb and ldconfig runs at the
    # first boot, see systemd-update-done.service(8).
    now = int(time.time()) + 1
    stamp = _UPDATED.format(now * 1_000_000_000).encode()
    text = "\n".join(_for_the_machine(source).deb822() for source in sources)
    added: list[AddedFile | AddedLink] = [
        AddedFile("etc/apt/sources.list.d/debian.sources", text.encode()),
        AddedFile("etc/fstab", b"# The root file system is mounted by vmgr's agent.\n"),
        AddedFile("etc/.updated", stamp, mtime=now),
        AddedFile("var/.updated", stamp, mtime=now),
    ]
    if recipe.systemd:
        # Empty, not "uninitialized": that would run the first-boot presets, see machine-id(5).
        added.append(AddedFile("etc/machine-id", b"", mode=0o444))
        added.append(
            AddedLink("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")
        )
    return added


def _for_the_machine(source: Source) -> Source:
    """The host's source as the machine can use it: with the keys that Debian's own package has."""
    kept = tuple(
        (name, value)
        for name, value in source.options
        if name.lower() in {"check-valid-until", "check-date"}
    )
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return Source(source.uris, source.suites, source.components, (*kept, ("Signed-By", keyring)))
