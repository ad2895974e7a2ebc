"""Machines know what this computer knows: its extra certificates, time zone, git identity, proxies.

Files are placed by the agent, which leaves alone what the person made of them
(`agent/src/builtins/place.rs`): after a start, beside it, and again when this computer's change.
Proxies are variables of each command.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from asyncinotify import Inotify, Mask

from vmgr.errors import VmgrError
from vmgr.helper.hostfacts import (
    LOCALTIME,
    TRUSTED,
    certificates,
    git_identity,
    git_places,
    proxies,
    timezone,
)
from vmgr.helper.watching import settled, watched

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.config import Config
    from vmgr.helper.helper import Helper
    from vmgr.helper.hostfacts import Zone
    from vmgr.helper.machine import Machine

__all__ = ["Credentials"]

_HOST_NAME: Final = "host.vmgr.internal"
_DEBIANS: Final = "/usr/local/share/ca-certificates/"
_FEDORAS: Final = "/etc/pki/ca-trust/source/anchors/"
# The tools that make the programs' own stores of what lies in these directories.
_UPDATE: Final = b"""
if command -v update-ca-certificates; then exec update-ca-certificates; fi
if command -v update-ca-trust; then exec update-ca-trust; fi
"""
_PLACE_DEADLINE: Final = 20.0
_UPDATE_DEADLINE: Final = 300.0
_SETTLED: Final = 0.3
_PATIENCE: Final = 5.0
_MASK: Final = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.CLOSE_WRITE | Mask.DELETE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Facts:
    certificates: dict[str, str]
    zone: Zone | None
    identity: dict[str, str]


class Credentials:
    """What all machines are told of this computer."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._placing: dict[str, asyncio.Task[None]] = {}
        self._told: set[str] = set()
        self._known: _Facts | None = None
        self._reading = asyncio.Lock()

    async def run(self) -> None:
        """Follow this computer's files until cancelled."""
        in_files = self._helper.executors.in_files
        changed = False
        while True:
            try:
                watch = Inotify()
            except OSError as error:
                log.warning("changes of this computer's certificates are not noticed: %s", error)
                return
            with watch:
                names, directories = await in_files(_places)
                for directory in directories:
                    with contextlib.suppress(OSError):  # one that is not there
                        watch.add_watch(directory, _MASK)
                if changed:  # read while it is watched: what changes meanwhile is seen next
                    self._known = None
                    self.renew()
                await _changed(watch, names)
                changed = True

    def renew(self) -> None:
        """Something has changed: tell the machines that run."""
        for machine in self._helper.machines.all():
            self.begin(machine)

    def begin(self, machine: Machine) -> None:
        """A machine has started, or something has changed: have the files placed."""
        row = machine.row
        if machine.status != "running" or row.pooled or row.id in self._placing:
            return
        task = self._helper.watchers.start(
            self._place(machine), name=f"this computer's files in {machine.name}"
        )
        self._placing[row.id] = task
        task.add_done_callback(lambda _: self._placing.pop(row.id, None))

    async def variables(self, machine: Machine) -> dict[str, str]:
        """The variables of a command in it; waits until the files are there."""
        if (placing := self._placing.get(machine.row.id)) is not None:
            await asyncio.wait({placing})
        config = await self._helper.settings()
        row = machine.row
        if config.get("host.proxies") != "on" or row.access == "none":
            return {}
        found = proxies(os.environ, row.host_access, _HOST_NAME)
        for proxy in found.unreachable:
            self._tell(proxy)
        return found.variables

    def _tell(self, proxy: str) -> None:
        if proxy in self._told:
            return
        self._told.add(proxy)
        port = proxy.rpartition(":")[2]
        notice = (
            f"the proxy {proxy} is on this computer's loopback, which machines do not reach, so "
            f"they have no proxy; to let one: vmgr net set NAME --host-access {port}"
            if port.isdecimal()
            else f"the proxy {proxy} is on this computer's loopback, which machines do not reach"
        )
        log.info("%s", notice)
        self._helper.tell(notice)

    async def _place(self, machine: Machine) -> None:
        row = machine.row
        try:
            wanted = await self._wanted(machine, await self._helper.settings())
            payload = msgspec.msgpack.encode(wanted)
            digest = _digest(wanted)
            # What went on where it stood has them, and nobody is to wait.
            same = row.placed == digest and row.started_from in {"suspended", "fork"}
            if same or not (row.placed or wanted["files"] or wanted["certificates"]):
                return
            channel = await machine.ready_channel()
            done = await channel.run(
                [b"place"], builtin="place", stdin=payload, limit=65_536, deadline=_PLACE_DEADLINE
            )
            await machine.save(placed=digest)
        except (VmgrError, TimeoutError) as error:
            log.info("machine %s is not told of this computer: %s", machine.name, error)
            return
        lines = done.stdout.decode(errors="replace").splitlines()
        if done.stderr:
            log.warning("machine %s: %r", machine.name, done.stderr[:500])
        log.info("machine %s: this computer's files: %r", machine.name, lines[:20])
        changed = [line for line in lines if line.startswith(("wrote ", "removed "))]
        if any(_DEBIANS in line or _FEDORAS in line for line in changed):
            self._helper.watchers.start(_update(machine), name=f"certificates of {machine.name}")

    async def _facts(self) -> _Facts:
        """What this computer has, read once for each time that it changes."""
        async with self._reading:
            if self._known is None:
                in_files = self._helper.executors.in_files
                self._known = _Facts(
                    await in_files(certificates), await in_files(timezone), await git_identity()
                )
            return self._known

    async def _wanted(self, machine: Machine, config: Config) -> dict[str, list[Any]]:
        """The input of `place`."""
        row, facts = machine.row, await self._facts()
        files: list[dict[str, Any]] = []
        trusted = facts.certificates if config.get("host.certificates") == "on" else {}
        pem = [text.encode() for text in trusted.values()]
        # A run's machine is gone before it matters what time zone it was in.
        if row.ephemeral:
            return {"files": [], "certificates": pem}
        for directory in (_DEBIANS, _FEDORAS):
            files += [
                {"path": directory + name, "content": text.encode()}
                for name, text in trusted.items()
            ]
        if config.get("host.timezone") == "on" and (zone := facts.zone) is not None:
            link = f"/usr/share/zoneinfo/{zone.name}"
            text = f"{zone.name}\n".encode()
            # What an image has is nobody's choice, as long as nobody has been in the machine.
            new = row.placed == ""
            files += [
                {"path": "/etc/localtime", "content": zone.content, "link": link, "replace": new},
                {"path": "/etc/timezone", "content": text, "replace": new},
            ]
        if config.get("host.git") == "on" and facts.identity:
            files.append({"path": "/etc/gitconfig", "content": _gitconfig(facts.identity)})
        return {"files": files, "certificates": pem}


def _digest(wanted: dict[str, list[Any]]) -> str:
    files = [(file["path"], file["content"]) for file in wanted["files"]]
    return hashlib.sha256(repr((files, wanted["certificates"])).encode()).hexdigest()[:16]


def _gitconfig(identity: dict[str, str]) -> bytes:
    lines = [
        "# From the computer that this machine runs on; ~/.gitconfig comes before it.",
        "[user]",
    ]
    for key, value in sorted(identity.items()):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'\t{key} = "{quoted}"')
    return ("\n".join(lines) + "\n").encode()


async def _update(machine: Machine) -> None:
    try:
        channel = await machine.ready_channel()
        await channel.run([b"/bin/sh", b"-c", _UPDATE], deadline=_UPDATE_DEADLINE)
    except (VmgrError, TimeoutError) as error:
        log.info("machine %s: its certificates are not renewed: %s", machine.name, error)


def _places() -> tuple[set[str], set[Path]]:
    """The names of files to look out for ("": all), and the directories that they are in."""
    files = [place for path in (LOCALTIME, *git_places()) for place in watched(path)]
    return {file.name for file in files}, {*(file.parent for file in files), *TRUSTED}


async def _changed(watch: Inotify, names: set[str]) -> None:
    """Wait for a change of one of the files, and until they have settled."""
    while True:
        event = await watch.get()
        if str(event.name) in names or (event.watch and event.watch.path in TRUSTED):
            break
    await settled(watch, _SETTLED, _PATIENCE)
