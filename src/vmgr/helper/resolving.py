"""Following this computer's /etc/resolv.conf: a VPN that comes up brings other domains.

Which resolvers are asked the switchboard sees for itself with each question; the domains in which
short names are searched stand in the machines' own files, so machines that run are told.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncinotify import Inotify, Mask

from vmgr.errors import VmgrError
from vmgr.helper.watching import settled, watched

if TYPE_CHECKING:
    from vmgr.helper.helper import Helper

__all__ = ["RESOLV_CONF", "Resolution", "follow_resolver", "read_resolution"]

RESOLV_CONF: Final = Path("/etc/resolv.conf")
_SETTLED: Final = 0.1  # seconds without a change after which a file is read
_PATIENCE: Final = 2.0  # seconds after which it is read however often it changes
_MASK: Final = (
    Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.CLOSE_WRITE | Mask.DELETE | Mask.ATTRIB
)

log = logging.getLogger(__name__)

Resolution = tuple[tuple[str, ...], tuple[str, ...]]
"""Resolvers and search domains."""


async def follow_resolver(helper: Helper, path: Path = RESOLV_CONF) -> None:
    """Tell machines whenever the file says something else, until cancelled."""
    in_files = helper.executors.in_files
    known = await in_files(read_resolution, path)
    await helper.network.use_resolvers(list(known[0]))
    while True:
        try:
            watch = Inotify()
        except OSError as error:
            log.warning("changes of %s are not noticed: %s", path, error)
            return
        with watch:
            places = await in_files(watched, path)
            for directory in {place.parent for place in places}:
                with contextlib.suppress(OSError):  # one that is not there
                    watch.add_watch(directory, _MASK)
            # Between reading the file and watching it, it may have changed.
            now = await in_files(read_resolution, path)
            if now == known:
                await _changed(watch, {place.name for place in places})
                now = await in_files(read_resolution, path)
        if now == known:
            continue
        known = now
        servers, search = now
        await helper.network.use_resolvers(list(servers))
        log.info("names are now resolved by %s, searched in %s", servers, search)
        for machine in helper.machines.all():
            try:
                await helper.machines.engine.renew_network(machine)
            except VmgrError as error:
                log.warning("machine %s does not hear of it: %s", machine.name, error)
        helper.events.publish("network.resolver", servers=list(servers), search=list(search))


async def _changed(watch: Inotify, names: set[str]) -> None:
    """Wait for a change of one of the files, and until they have settled."""
    while str((await watch.get()).name) not in names:
        pass
    await settled(watch, _SETTLED, _PATIENCE)


def read_resolution(path: Path) -> Resolution:
    """What the file says, as resolv.conf(5) reads it; nothing when it cannot be read."""
    servers: list[str] = []
    search: list[str] = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 (an fd)
            lines = file.read(65_536).splitlines()
    except OSError:
        return (), ()
    for line in lines:
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            with contextlib.suppress(ValueError):
                servers.append(str(ipaddress.ip_address(words[1])))
        elif words[:1] in (["search"], ["domain"]):  # the last one counts
            search = words[1:]
    fits = [d.rstrip(".") for d in search if d.isascii() and 0 < len(d.rstrip(".")) < 254]  # noqa: PLR2004
    fits = [d for d in fits if all(c.isalnum() or c in "-._" for c in d)]
    return tuple(servers[:3]), tuple(fits[:6])
