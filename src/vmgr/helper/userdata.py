"""User-data for cloud-init: accepted where the image can use it, given to the machine as a disk.

The text is in the machine's row, so whatever is copied from a machine has it too; the disk is made
from it. An image is not looked into before it runs: whether cloud-init is in it is asked of the
machine, once it has started, and the person is told if it is not.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from vmgr.errors import UsageError, VmgrError
from vmgr.vmm.seed import write_seed

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.image import Image

__all__ = ["check_user_data", "look_for_cloud_init", "seed_of"]

MOST: Final = 256 * 1024  # bytes; some clouds take 16 KiB
_PROGRAM: Final = b"/usr/bin/cloud-init"

log = logging.getLogger(__name__)


def check_user_data(text: str, reference: str, image: Image) -> None:
    """See that a machine of that image can be given the text.

    Raises:
        UsageError: it cannot.
    """
    if len(text.encode()) > MOST:
        raise UsageError(f"user-data of more than {MOST // 1024} KiB is not taken")
    if not text.strip():
        raise UsageError("the user-data is empty")
    if image.init is None:
        raise UsageError(
            f"image {reference} has no init that would start cloud-init for the user-data",
            next_step="take an image with systemd and cloud-init, or leave out --user-data",
        )


async def seed_of(machine: Machine, helper: Helper) -> Path | None:
    """The machine's disk with user-data; None: it was given none."""
    row = machine.row
    if row.user_data is None:
        return None
    path = machine.paths.seed

    def write(text: str = row.user_data) -> None:
        write_seed(path, text, instance=row.id, hostname=row.name)

    try:
        await helper.executors.in_files(write)
    except OSError as error:
        raise VmgrError(f"the user-data cannot be written: {error.strerror}") from error
    return path


async def look_for_cloud_init(machine: Machine, helper: Helper) -> None:
    """Tell the person where a machine that was given user-data cannot use it."""
    try:
        channel = await machine.ready_channel()
        done = await channel.run([b"stat", _PROGRAM], builtin="stat", limit=1_024)
    except (VmgrError, TimeoutError) as error:
        log.info("machine %s: whether it has cloud-init is not known: %s", machine.name, error)
        return
    if b'"missing"' in done.stdout:
        helper.tell(
            f"machine {machine.name} was given user-data, but its image has no cloud-init: "
            "nothing of it was done"
        )
        helper.events.publish("machine.no-cloud-init", machine.name)
