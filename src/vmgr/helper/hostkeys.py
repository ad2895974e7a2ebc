"""SSH host keys for machines that were copied: theirs were removed, and they get keys of their own.

In the background: making keys takes a while where all code is emulated, and nobody waits for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from vmgr.errors import ExecError, VmgrError

if TYPE_CHECKING:
    from vmgr.helper.machine import Machine

__all__ = ["make_host_keys"]

_KEYS_DEADLINE: Final = 120.0
_NEW_HOST_KEYS: Final = b"""
[ -x /usr/sbin/sshd ] || exit 0
ssh-keygen -A >/dev/null 2>&1
if [ -d /run/systemd/system ]; then systemctl try-restart ssh.service sshd.service; fi
exit 0
"""

log = logging.getLogger(__name__)


async def make_host_keys(machine: Machine) -> None:
    """Have keys made, and a server that runs take them up."""
    try:
        channel = await machine.ready_channel()
        await channel.run([b"/bin/sh", b"-c", _NEW_HOST_KEYS], deadline=_KEYS_DEADLINE)
    except ExecError:
        return  # it has no shell
    except (VmgrError, TimeoutError) as error:
        log.info("machine %s: no new SSH host keys: %s", machine.name, error)
