"""One VMM: the QEMU process of a running machine.

It is a session of its own and outlives the helper; all that binds the two are sockets with names, a
pidfd, and a log file. `Vmm.start` makes one, `Vmm.adopt` takes over one that another helper
started. Nobody asks it whether it still runs: its end is an event of the pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asyncinotify import Inotify, Mask

from vmgr.errors import (
    MachineError,
    NotFoundError,
    ResourceError,
    StateError,
    UnsupportedError,
)
from vmgr.sandbox.cgroup import GroupLimits, attach, group_of, make_group, remove_group
from vmgr.spawner import Contained, Process, StopPolicy
from vmgr.spawner.process import start_time_of
from vmgr.vmm import cappedlog
from vmgr.vmm.clock import host_tsc_is_steady
from vmgr.vmm.commandline import command_line
from vmgr.vmm.console import Console
from vmgr.vmm.diskcopy import DiskCopy, JobEnds
from vmgr.vmm.exit import VmmExit, explain_exit, failure_to_start
from vmgr.vmm.hotplug import Hotplug
from vmgr.vmm.isolation import need_of
from vmgr.vmm.memory import check_memory
from vmgr.vmm.qmp import Qmp
from vmgr.vmm.sockets import listening
from vmgr.vmm.traffic import disk_traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from concurrent.futures import Executor

    from vmgr.paths import MachinePaths
    from vmgr.sandbox import Sandbox
    from vmgr.vmm.accelerator import Accelerator
    from vmgr.vmm.commandline import SocketFds, VmmSpec
    from vmgr.vmm.qemu import Qemu
    from vmgr.vmm.traffic import DiskTraffic

    EventCallback = Callable[[str, Mapping[str, Any]], None]

__all__ = ["Vmm"]

_LOG_TAIL: Final = 8_192  # bytes of the VMM's log that its end shows
_LAST_WORDS: Final = 2.0  # seconds for what is still in the sockets of a VMM that has ended
_TERM_WAIT: Final = 3.0  # seconds in which QEMU writes back what it holds of the disk
# When memory runs out, a machine goes before the helper and the person's desktop.
_OOM_SCORE_ADJ: Final = 300
_BACKGROUND_NICE: Final = 15
_SAVE_DEADLINE: Final = 30.0  # seconds; it takes milliseconds

log = logging.getLogger(__name__)


class Vmm:
    """A running VMM. Made by `start` or `adopt`; `close` lets go of it, `kill` ends it."""

    def __init__(
        self,
        name: str,
        process: Process,
        paths: MachinePaths,
        executor: Executor,
        on_event: EventCallback | None,
    ) -> None:
        self.name = name
        self.pid = process.pid
        self.start_time = start_time_of(process.pid)
        """With `pid` it names the process for ever; None: it ended at once."""
        self.console: Console | None = None
        self.out_of_space = asyncio.Event()
        """Set while the machine stands still as the host's disk is full; `resume` lets it go on."""
        self.paused = False
        """Whether it was found standing still, as `pause` leaves it, when it was adopted."""
        self._process = process
        self._paths = paths
        self._executor = executor
        self._on_event_callback = on_event
        self._qmp: Qmp | None = None
        self._qmp_lock = asyncio.Lock()
        self._shutdown: str | None = None
        self._panicked = False
        self._group: Path | None = None
        self._jobs = JobEnds()
        self.hotplug = Hotplug(name, self._connected)
        """Volumes that come and go while it runs."""
        self._asked: str | None = None
        self._exit: asyncio.Future[VmmExit] = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._watch_end(), name=f"vmm {name}"),
            asyncio.create_task(self._watch_log(), name=f"vmm log {name}"),
        ]

    # -- beginning -------------------------------------------------------------------------

    @classmethod
    async def start(
        cls,
        spec: VmmSpec,
        paths: MachinePaths,
        qemu: Qemu,
        accelerator: Accelerator,
        executor: Executor,
        *,
        sandbox: Sandbox,
        on_event: EventCallback | None = None,
        verbose: bool = False,
        background: bool = False,
    ) -> Vmm:
        """Start a VMM; its machine begins to boot, or goes on where a saved one stood still.

        Args:
            paths: the machine's files; its state directory exists.
            executor: for file work, also that of the console.
            sandbox: what it is locked into.
            on_event: called on the loop with QMP events; must not raise.
            verbose: let the guest's kernel tell each step of its boot.
            background: nobody waits for it, so it makes way for others.

        Raises:
            ResourceError: the host has not the memory.
            ConflictError: another process has the disk open.
            StateError: a file is missing or cannot be read.
            UnsupportedError: the host does not let it be started.
            MachineError: QEMU refuses.
        """
        loop = asyncio.get_running_loop()
        log_fd = await loop.run_in_executor(executor, _prepare, spec, paths)
        steady = await loop.run_in_executor(executor, host_tsc_is_steady)
        try:
            with listening(paths, spec.share_ports) as sockets, contextlib.ExitStack() as pipe:
                fds = sockets.fds
                if spec.restore is not None:
                    read, write = os.pipe2(os.O_CLOEXEC)
                    pipe.callback(os.close, read)
                    fds = dataclasses.replace(fds, devices=read)
                    # For as long as the VMM takes to read it; a VMM that ends, ends it.
                    loop.run_in_executor(executor, _feed, write, spec.restore.devices)
                argv = command_line(
                    spec, qemu, accelerator.name, fds, verbose=verbose, steady_tsc=steady
                )
                process = await sandbox.spawn(
                    argv,
                    need_of(spec, accelerator.name),
                    stdout=log_fd,
                    stderr=log_fd,
                    pass_fds=_passed(spec, fds),
                )
        except OSError as error:
            # No fault of the machine's, nor of what it was to go on from.
            lacks = error.errno in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
            raise (ResourceError if lacks else UnsupportedError)(
                f"{qemu.program} could not be started: {error.strerror}",
                next_step="see what is missing with: vmgr doctor",
            ) from error
        finally:
            os.close(log_fd)
        vmm = cls(spec.name, process, paths, executor, on_event)
        try:
            if sandbox.cgroup is not None:
                vmm._group = await loop.run_in_executor(
                    executor, _limit, spec, sandbox.cgroup, process
                )
            _set_priority(process.pid, background=background)
            vmm.console = await Console.connect(paths.console_socket, paths.console_log, executor)
            vmm._qmp = await Qmp.connect(paths.qmp_socket, spec.name, vmm._on_event)
        except BaseException as error:
            ended = await asyncio.shield(vmm._abandon())
            if isinstance(error, MachineError) and ended.cause != "asked":
                raise failure_to_start(spec.name, ended) from error
            raise
        return vmm

    @classmethod
    async def adopt(
        cls,
        name: str,
        pid: int,
        start_time: int,
        paths: MachinePaths,
        executor: Executor,
        *,
        on_event: EventCallback | None = None,
    ) -> Vmm | None:
        """Take over a VMM that another helper started; None when it has ended.

        A VMM that runs but cannot be spoken to is given all the same: it can still be ended.

        Args:
            start_time: as `Vmm.start_time` was.
        """
        process = Process.adopt(pid, start_time)
        if process is None:
            return None
        vmm = cls(name, process, paths, executor, on_event)
        try:
            vmm._group = await asyncio.get_running_loop().run_in_executor(executor, group_of, pid)
            vmm.console = await Console.connect(paths.console_socket, paths.console_log, executor)
            state = await vmm._execute("query-status")
            status = state.get("status") if isinstance(state, dict) else None
            if status == "io-error":
                vmm.out_of_space.set()
            vmm.paused = status == "paused"
        except MachineError as error:
            log.warning("machine %s: %s", name, error)
        except BaseException:
            await asyncio.shield(vmm.close())
            raise
        return vmm

    # -- while it runs ---------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.running

    async def wait(self) -> VmmExit:
        """Wait for its end. Cancelling the wait leaves it alone."""
        return await asyncio.shield(self._exit)

    async def powerdown(self) -> None:
        """Press the machine's power button (ACPI); what it does about it is its own affair.

        Raises:
            MachineError: the VMM does not take the command.
        """
        await self._execute("system_powerdown")

    async def pause(self) -> None:
        """Let the machine stand still; all that it has written is in its disk's file then.

        Raises:
            MachineError: the VMM does not take the command.
        """
        await self._execute("stop")

    @contextlib.asynccontextmanager
    async def copying_disk(self, fd: int) -> AsyncIterator[DiskCopy]:
        """Prepare a copy of the disk: `start` it while the machine is paused, and `wait` for it.

        Args:
            fd: see `DiskCopy.prepared`.

        Raises:
            MachineError: the VMM does not take it.
        """
        qmp = await self._connected()
        async with DiskCopy.prepared(self.name, qmp, self._jobs, fd) as copy:
            yield copy

    async def save_devices(self, fd: int) -> None:
        """Write the state of a paused machine's devices (not its memory) to a file.

        Args:
            fd: of an empty file, open only for writing.

        Raises:
            MachineError: the VMM does not take the command, or cannot write.
        """
        # Not a migration: that would write the memory as well where it is mapped privately. The
        # command is documented for everyone, whatever its name says.
        qmp = await self._connected()
        async with qmp.lent(fd) as name:
            await qmp.execute(
                "xen-save-devices-state", {"filename": name, "live": False},
                deadline=_SAVE_DEADLINE,
            )  # fmt: skip

    async def resume(self) -> None:
        """Let a machine go on that stands still: paused, or since the host's disk was full.

        Raises:
            MachineError: the VMM does not take the command.
        """
        await self._execute("cont")
        if self._qmp is not None:
            await self._qmp.take_back()

    async def disk_traffic(self, deadline: float) -> DiskTraffic | None:
        """What its machine has read and written so far; None where the VMM does not tell.

        Args:
            deadline: seconds that it may take.

        Raises:
            MachineError: the VMM does not answer, or not in time.
        """
        try:
            async with asyncio.timeout(deadline):
                return disk_traffic(await self._execute("query-blockstats"))
        except TimeoutError:
            raise MachineError(f"the VMM of machine {self.name} does not answer") from None

    async def kill(self, reason: str, *, at_once: bool = False) -> VmmExit:
        """End the VMM, whatever the machine does: for the machine like pulling the plug.

        Args:
            reason: why, as `VmmExit.reason` will tell it.
            at_once: do not let QEMU write back what it holds of the disk; for one that is thrown
                away.
        """
        if self._asked is None:
            self._asked = reason
        policy = StopPolicy(None if at_once else signal.SIGTERM, _TERM_WAIT)
        await self._process.stop(policy)
        return await self.wait()

    async def close(self) -> None:
        """Let go: end the connections and the watching. A VMM that runs goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._qmp is not None:
            await self._qmp.close()
        if self.console is not None:
            await self.console.close()
        self._exit.cancel()

    # -- inside ----------------------------------------------------------------------------

    async def _execute(self, command: str) -> Any:
        """Run a command, connecting again where the connection has ended but the VMM has not."""
        return await (await self._connected()).execute(command)

    async def _connected(self) -> Qmp:
        async with self._qmp_lock:
            if self._qmp is None or self._qmp.closed.is_set():
                self._qmp = await Qmp.connect(self._paths.qmp_socket, self.name, self._on_event)
            return self._qmp

    def _on_event(self, event: str, data: Mapping[str, Any]) -> None:
        self._jobs.event(event, data)
        self.hotplug.event(event, data)
        if event == "SHUTDOWN":
            self._shutdown = str(data.get("reason"))
        elif event == "GUEST_PANICKED":
            self._panicked = True
        elif event == "BLOCK_IO_ERROR" and data.get("nospace") and data.get("action") == "stop":
            self.out_of_space.set()
            log.error("machine %s stands still: no space is left for its disk", self.name)
        elif event == "RESUME":
            self.out_of_space.clear()
        if self._on_event_callback is not None:
            self._on_event_callback(event, data)

    async def _abandon(self) -> VmmExit:
        """End a VMM that could not be started; how it ended by itself, if it did."""
        try:
            async with asyncio.timeout(_LAST_WORDS):
                ended = await self.wait()
        except TimeoutError:
            ended = await self.kill("it could not be reached", at_once=True)
        await self.close()
        return ended

    async def _watch_end(self) -> None:
        status = await self._process.wait()
        self._jobs.fail("its VMM has ended")
        self.hotplug.ended()
        # What it said last is still in our end of the sockets: the event that tells why, the panic.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                if self._qmp is not None:
                    await self._qmp.closed.wait()
                if self.console is not None:
                    await self.console.ended.wait()
        tail = await asyncio.get_running_loop().run_in_executor(
            self._executor, cappedlog.read_tail, self._paths.vmm_log, _LOG_TAIL
        )
        if self._group is not None:
            await asyncio.get_running_loop().run_in_executor(
                self._executor, remove_group, self._group
            )
        said = self.console.panic if self.console is not None else None
        panic = said or ("" if self._panicked else None)
        text = tail.decode(errors="replace")
        if not self._exit.done():
            self._exit.set_result(explain_exit(status, self._shutdown, panic, self._asked, text))

    async def _watch_log(self) -> None:
        """Keep the VMM's log short, without anything between it and the file."""
        loop = asyncio.get_running_loop()
        path = self._paths.vmm_log
        with Inotify() as watch:
            try:
                watch.add_watch(path, Mask.MODIFY | Mask.DELETE_SELF | Mask.MOVE_SELF)
            except OSError as error:
                log.warning("machine %s: its VMM's log is not watched: %s", self.name, error)
                return
            while True:
                event = await watch.get()
                if not event.mask & Mask.MODIFY:
                    return
                try:
                    await loop.run_in_executor(self._executor, cappedlog.trim, path)
                except OSError as error:
                    log.warning("%s cannot be cut: %s", path, error.strerror)


def _network_fds(spec: VmmSpec) -> tuple[int, ...]:
    if spec.network is None or spec.network.tap_fd is None:
        return ()
    return (spec.network.tap_fd,)


def _prepare(spec: VmmSpec, paths: MachinePaths) -> int:
    """Find out what can be found out before QEMU is started; give the fd of its log."""
    check_memory(spec.name, spec.memory_bytes)
    _check_readable(spec.kernel, "the kernel")
    _check_readable(spec.initramfs, "the initramfs")
    if spec.modules is not None:
        _check_readable(spec.modules, "the kernel modules' disk")
    for path in spec.backing:
        _check_readable(path, f"the image of machine {spec.name}")
    _check_readable(spec.disk, f"the disk of machine {spec.name}", os.R_OK | os.W_OK)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(paths.vmm_log, flags, 0o600)
        try:
            os.truncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise (ResourceError if full else StateError)(
            f"cannot write {paths.vmm_log}: {error.strerror}",
            next_step="free some disk space" if full else "check its directory",
        ) from error
    return fd


def _limit(spec: VmmSpec, parent: Path, process: Process) -> Path:
    """Put a VMM into a control group of its own; nothing of the guest's memory is there yet."""
    try:
        limits = GroupLimits(spec.cpus, spec.memory_bytes)
        group = make_group(parent, spec.machine_id, limits)
        monitor = [process.monitor.pid] if isinstance(process, Contained) else []
        attach(group, *monitor, process.pid)
    except OSError as error:
        raise UnsupportedError(
            f"the VMM of machine {spec.name} cannot be limited: {error.strerror}",
            next_step="see what this host permits with: vmgr doctor",
        ) from error
    return group


def _check_readable(path: Path, what: str, mode: int = os.R_OK) -> None:
    if not path.is_file():
        raise NotFoundError(
            f"{what} is missing: there is no file {path}",
            next_step="run: vmgr doctor",
            details={"path": str(path)},
        )
    if not os.access(path, mode) or path.stat().st_size == 0:
        verb = "written" if mode & os.W_OK else "read"
        raise StateError(
            f"{what} cannot be {verb} or is empty: {path}",
            next_step="check its owner and permissions",
            details={"path": str(path)},
        )


def _passed(spec: VmmSpec, fds: SocketFds) -> list[int]:
    """The fds that the VMM gets."""
    passed = [fds.qmp, fds.agent, fds.console, *fds.shares, *_network_fds(spec)]
    passed += [volume.fd for volume in spec.volumes]
    if spec.restore is not None and fds.devices is not None:
        passed += [spec.restore.memory, fds.devices]
    return passed


def _feed(fd: int, data: bytes) -> None:
    """Write `data` to a pipe and close it."""
    try:
        with contextlib.suppress(BrokenPipeError):  # its end says why
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def _set_priority(pid: int, *, background: bool) -> None:
    # Both need no right, see proc(5) and setpriority(2); it may also have ended already. Threads
    # begin with the priority of the one that starts them, and at this point there is one.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_OOM_SCORE_ADJ), encoding="ascii")
        if background:
            os.setpriority(os.PRIO_PROCESS, pid, _BACKGROUND_NICE)
