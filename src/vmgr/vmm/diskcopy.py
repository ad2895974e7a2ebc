"""Copying a machine's disk as it is at one moment, while the machine goes on.

QEMU's backup job does it: from its start on, what the machine is about to overwrite is copied
first. So a machine stands still only for as long as starting the job takes, however large its disk
is. Only what the disk itself holds is copied; the copy stands on the same image.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any, Final

from vmgr.errors import MachineError, ResourceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from vmgr.vmm.qmp import Qmp

__all__ = ["DISK_NODE", "IMAGE_NODE", "DiskCopy", "JobEnds"]

DISK_NODE: Final = "root"
IMAGE_NODE: Final = "image"
"""What the disk stands on."""
_JOB_DEADLINE: Final = 3_600.0
_CANCEL_DEADLINE: Final = 30.0


class JobEnds:
    """Where the ends of a VMM's block jobs are waited for."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[str | None]] = {}

    def expect(self, job: str) -> asyncio.Future[str | None]:
        """The future of a job that is about to begin: its error, or None."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[job] = future
        return future

    def forget(self, job: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(job, None)

    def event(self, event: str, data: Mapping[str, Any]) -> None:
        """A QMP event; those of other kinds are ignored."""
        if event not in {"BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"}:
            return
        future = self._waiting.get(str(data.get("device")))
        if future is not None and not future.done():
            ended = event == "BLOCK_JOB_COMPLETED"
            error = data.get("error") if ended else "it was cancelled"
            future.set_result(None if error is None else str(error))

    def fail(self, reason: str) -> None:
        """The VMM has ended."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result(reason)


class DiskCopy:
    """One copy; made by `DiskCopy.prepared`."""

    def __init__(self, name: str, qmp: Qmp, ends: JobEnds, node: str) -> None:
        self._name = name
        self._qmp = qmp
        self._ends = ends
        self._node = node
        self._end: asyncio.Future[str | None] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def prepared(cls, name: str, qmp: Qmp, ends: JobEnds, fd: int) -> AsyncIterator[DiskCopy]:
        """Let the VMM open the copy's file; closed, and a job that still runs ended, at the end.

        Args:
            name: the machine's, for errors.
            fd: of an empty qcow2 of the disk's size on the same image, open for reading and
                writing.

        Raises:
            MachineError: the VMM does not take it.
        """
        node = f"copy-{secrets.token_hex(4)}"
        async with qmp.lent(fd) as file:
            await qmp.execute("blockdev-add", {
                "driver": "qcow2", "node-name": node, "backing": IMAGE_NODE, "discard": "unmap",
                "file": {"driver": "file", "filename": file, "locking": "off"},
            })  # fmt: skip
            copy = cls(name, qmp, ends, node)
            try:
                yield copy
            finally:
                await asyncio.shield(copy._close())

    async def start(self) -> None:
        """Begin: the copy will be what the disk is at this moment. The machine is paused.

        Raises:
            MachineError: the VMM does not take the command.
        """
        self._end = self._ends.expect(self._node)
        await self._qmp.execute("blockdev-backup", {
            "job-id": self._node, "device": DISK_NODE, "target": self._node, "sync": "top",
        })  # fmt: skip

    async def wait(self) -> None:
        """Wait until it is complete.

        Raises:
            ResourceError: no space left for it.
            MachineError: it failed otherwise.
        """
        assert self._end is not None  # noqa: S101 (started)
        try:
            async with asyncio.timeout(_JOB_DEADLINE):
                error = await asyncio.shield(self._end)
        except TimeoutError:
            error = f"it was not complete after {_JOB_DEADLINE:g} s"
        if error is None:
            return
        if "No space left" in error or "quota" in error.lower():
            raise ResourceError(
                f"no space left to copy the disk of machine {self._name}",
                next_step="free some space there",
            )
        raise MachineError(f"the disk of machine {self._name} is not copied: {error}")

    async def _close(self) -> None:
        try:
            if self._end is not None and not self._end.done():
                with contextlib.suppress(MachineError):  # it may just have ended
                    await self._qmp.execute(
                        "block-job-cancel", {"device": self._node, "force": True}
                    )
                    async with asyncio.timeout(_CANCEL_DEADLINE):
                        await asyncio.shield(self._end)
        except TimeoutError:
            pass
        finally:
            self._ends.forget(self._node)
        with contextlib.suppress(MachineError):  # the VMM may be gone, and the file with it
            await self._qmp.execute("blockdev-del", {"node-name": self._node})
