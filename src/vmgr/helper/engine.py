"""Drives one machine's VMM and agent: boot, adopt, stop, kill, exec.

Who changes a machine's status here holds its lock, but for `kill` and the watcher of the VMM's end:
`kill` only ends the process, and the watcher turns its end into the status `stopped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, cast

from vmgr._version import __version__
from vmgr.agent import AgentChannel, ExecRequest, TerminalSize, listeners_of
from vmgr.agent_binary import find_agent
from vmgr.api.models import JobInfo, StopReport, StopStep
from vmgr.errors import AgentError, MachineError, VmgrError, WrongStateError
from vmgr.helper.diskroom import watch_room
from vmgr.helper.machine import ResyncKeys
from vmgr.helper.plugging import Plugging
from vmgr.helper.relay import exit_result
from vmgr.helper.starting import Starting
from vmgr.helper.suspending import Suspending
from vmgr.vmm import (
    Accelerator,
    ProbeCache,
    Qemu,
    StopDeadlines,
    Vmm,
    VmmExit,
    find_qemu,
    orderly_stop,
    probe_accelerator,
    probe_vmm_sandbox,
)
from vmgr.vmm.accelerator import check_kvm
from vmgr.vmm.clock import counter_khz

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vmgr.agent import AgentEvent, AgentHello, Job, JobSink
    from vmgr.api.models import ExecSpec, SandboxLevel, StopMachine
    from vmgr.config import Config
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine, Services
    from vmgr.helper.tasks import Tasks
    from vmgr.sandbox import Sandbox

    Progress = Callable[[str, float | None], None]

__all__ = ["Engine"]

ADOPT_DEADLINE: Final = 10.0  # seconds for the agent's answer after a helper's death
RECONNECT_PAUSE: Final = 1.0
RECONNECT_DEADLINE: Final = 60.0  # a machine under emulation on a busy host may take long
_HELD_DEADLINE: Final = 70.0  # longer than it takes to give up on a machine that was held

log = logging.getLogger(__name__)


class Engine:
    """What machines run on.

    Args:
        on_end: awaited when a machine's VMM has ended, with how; the machine has been let go of.
    """

    def __init__(
        self,
        services: Services,
        tasks: Tasks,
        helper: Helper,
        on_end: Callable[[Machine, VmmExit], Awaitable[None]],
    ) -> None:
        self._services = services
        self._tasks = tasks
        self._helper = helper
        self._on_end = on_end
        self._probes = ProbeCache(services.paths.probes)
        self._counter_khz: int | None = None
        self._plugging = Plugging(helper)
        self.suspending = Suspending(services, helper)
        self.starting = Starting(services, helper, self, self._plugging, self.suspending)

    # -- what there is ------------------------------------------------------------------------

    async def qemu(self) -> Qemu:
        """The QEMU that machines run in.

        Raises:
            UnsupportedError: there is none, or it is too old.
        """
        override = str((await self._helper.settings()).get("qemu.path"))
        return await find_qemu(
            self._probes, self._services.executors.files, override=override or None
        )

    async def qemu_version(self) -> str | None:
        """Its version, None when there is none."""
        try:
            return (await self.qemu()).version
        except VmgrError:
            return None

    async def accelerator(self, kernel: Path) -> Accelerator:
        """What machines can run on here: KVM only when a guest was seen to run on it."""
        return await probe_accelerator(
            await self.qemu(), kernel, self._probes, self._services.executors.files
        )

    async def counter_khz(self) -> int | None:
        """How fast the counter counts by which emulated machines tell the time."""
        if self._counter_khz is None:
            with contextlib.suppress(VmgrError):  # there is no agent, as who starts one will see
                self._counter_khz = await counter_khz(
                    find_agent(), self._probes, self._services.executors.files
                )
        return self._counter_khz

    async def known_accelerator(self) -> Accelerator:
        """The same, without building a kernel to prove it with."""
        if (kernel := await self._helper.images.newest_kernel()) is not None:
            try:
                return await self.accelerator(kernel.kernel)
            except VmgrError as error:
                return Accelerator("tcg", error.message, error.next_step)
        refusal = await self._services.executors.in_files(check_kvm)
        return refusal or Accelerator("tcg", "KVM is tried when the first machine starts")

    async def sandbox(self, config: Config) -> Sandbox:
        """How well this host lets VMMs be locked in.

        Raises:
            UnsupportedError: less well than the settings ask for.
        """
        found = await probe_vmm_sandbox(
            await self.qemu(), self._probes, self._services.executors.files
        )
        found.require(cast("SandboxLevel", config.get("sandbox.require")))
        return found

    # -- starting ---------------------------------------------------------------------------

    async def start(self, machine: Machine, progress: Progress, *, cold: bool = False) -> None:
        """Start a machine and look after it; see `vmgr.helper.starting`."""
        await self.starting.start(machine, progress, cold=cold)

    def started(self, machine: Machine, vmm: Vmm) -> None:
        """A machine runs: see its end, and keep its agent reached."""
        self._watch(machine, vmm)
        self._keep(machine, vmm)
        self._helper.idling.look()
        self._helper.ports.automatic.follow(machine)
        self._helper.accounts.begin(machine)
        self._helper.credentials.begin(machine)

    async def connect(self, machine: Machine) -> AgentChannel:
        """Connect to a machine's agent; waits for no answer."""
        return await AgentChannel.connect(
            machine.paths.agent_socket,
            ResyncKeys(machine),
            machine=machine.name,
            host_version=__version__,
            on_event=lambda event: self._agent_event(machine, event),
            logger=log,
        )

    async def renew_network(self, machine: Machine) -> None:
        """Tell a machine that runs what its network is to be, once more."""
        if machine.status == "running" and machine.channel is not None:
            await self._plugging.configure(machine, machine.channel)

    # -- after a helper's death -----------------------------------------------------------------

    async def adopt(self, machine: Machine) -> None:
        """Take over a machine that another helper started. The caller holds its lock.

        A machine whose agent does not answer stays as it is: it can be stopped and killed.
        """
        row = machine.row
        vmm = None
        if row.vmm_pid is not None and row.vmm_start_time is not None:
            vmm = await Vmm.adopt(
                machine.name, row.vmm_pid, row.vmm_start_time, machine.paths,
                self._services.executors.files,
            )  # fmt: skip
        if vmm is None:
            # It ended between two looks.
            again = await self.suspending.can_again(machine)
            await machine.move(
                "suspended" if again else "vmm-exited",
                reason=None if again else "its VMM ended unobserved",
                vmm_pid=None, vmm_start_time=None,
            )  # fmt: skip
            self._helper.doorbell.follow(machine)
            if not again:
                await self.suspending.drop(machine)
            return
        machine.vmm = vmm
        self._watch(machine, vmm)
        if machine.kill_reason is not None:  # `kill` came before it was found
            await vmm.kill(machine.kill_reason, at_once=True)
            return
        try:
            if vmm.paused or vmm.out_of_space.is_set():
                # It was being saved, and its helper died; or there is room again: it goes on.
                await vmm.resume()
            await self._plugging.readopt(machine)
            booting = machine.status == "starting"
            channel, greeting = await self._hello_again(machine, vmm, booting=booting)
            if machine.vmm is not vmm:  # it has ended meanwhile
                channel.close()
                return
            await self._take_up(machine, channel, greeting)
            log.info("machine %s: adopted, %d jobs", machine.name, len(greeting.jobs))
        finally:
            # It goes on trying where that came to nothing.
            self._keep(machine, vmm)

    async def _take_up(self, machine: Machine, channel: AgentChannel, greeting: AgentHello) -> None:
        """Its agent answers a helper that does not know where the last one, or a capture, stopped.

        The caller holds the machine's lock; the channel is closed where this fails.
        """
        introduced = machine.status == "starting"
        try:
            if introduced:
                # Whether the helper that started it came to this, nobody knows; twice does no harm.
                await self.starting.introduce(machine, channel, greeting)
            elif "still" in greeting.features:
                await channel.thaw()
        except BaseException:
            channel.close()
            raise
        machine.connected(channel, greeting)
        if not introduced and machine.vmm is not None:
            await self._helper.volumes.bring_again(machine, machine.vmm, channel)
            await self._helper.shares.readopt(machine, channel)
        if machine.status != "running":
            # It runs: from here on its disk is the person's.
            await machine.move(
                "ready",
                pristine=False,
                template=None,
                clone=False,
                boot_id=greeting.boot_id,
                booted_init=greeting.init,
            )
            # What was saved of it is of no use from here on.
            await self.suspending.drop(machine)
        self._helper.ports.automatic.follow(machine)
        await self._helper.host_calls.tell(machine, channel, greeting.features)

    async def _hello_again(
        self, machine: Machine, vmm: Vmm, *, booting: bool
    ) -> tuple[AgentChannel, AgentHello]:
        """The answer of the agent in a machine that another helper started."""
        deadline = ADOPT_DEADLINE
        if booting:
            deadline = float((await self._helper.settings()).get("boot.timeout"))
        channel = await self.connect(machine)
        try:
            async with asyncio.timeout(deadline):
                return channel, await channel.hello()
        except TimeoutError:
            channel.close()
            if booting:
                await vmm.kill("it never became ready", at_once=True)
            raise AgentError(
                f"the agent of {machine.name} did not answer within {deadline:g} s",
                next_step=f"look at: vmgr logs {machine.name}",
            ) from None
        except BaseException:
            channel.close()
            raise

    async def let_go(self, machine: Machine) -> None:
        """Close the connections to a machine; it goes on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HELD_DEADLINE):
                await machine.unheld.wait()
        if machine.channel is not None:
            await machine.channel.aclose()
            machine.channel = None
        if machine.vmm is not None:
            await machine.vmm.close()
            machine.vmm = None

    # -- ending -----------------------------------------------------------------------------

    async def stop(self, machine: Machine, request: StopMachine) -> StopReport:
        """Stop a machine: its agent, its power button, its plug. The caller holds its lock."""
        vmm = machine.vmm
        if vmm is None:
            raise WrongStateError(f"machine {machine.name} has no VMM to stop")
        config = await self._helper.settings()

        def seconds(asked: float | None, key: str) -> float:
            return float(config.get(key)) if asked is None else asked

        deadlines = StopDeadlines(
            agent=seconds(request.agent_timeout, "stop.agent_timeout"),
            acpi=seconds(request.acpi_timeout, "stop.acpi_timeout"),
        )
        channel = machine.channel
        power_off = None
        if channel is not None:
            # The agent ends stragglers before our own deadline does.
            grace = max(1.0, deadlines.agent - 2.0)
            power_off = lambda: channel.poweroff(grace=grace)  # noqa: E731 (two lines, one use)
        machine.kill_reason = (
            "stopped by vmgr stop"  # from here on a reboot does not start it again
        )
        try:
            await machine.move("stop")
        except BaseException as error:
            machine.kill_reason = None
            if isinstance(error, WrongStateError) and machine.stopped.is_set():
                return StopReport(machine=machine.name, method="already-stopped", seconds=0)
            raise
        try:
            report = await orderly_stop(vmm, machine.name, power_off, deadlines)
        except MachineError as error:
            machine.kill_reason = None
            await machine.move("stop-failed", reason=str(error))
            raise
        await machine.stopped.wait()
        return report

    async def kill(self, machine: Machine, reason: str) -> StopReport:
        """End a machine's VMM at once; gives its end when the machine is stopped."""
        began = time.monotonic()
        machine.require("kill")
        machine.kill_reason = reason
        if machine.vmm is not None:
            await machine.vmm.kill(reason, at_once=machine.row.ephemeral)
        await machine.stopped.wait()
        took = time.monotonic() - began
        step = StopStep(method="kill", seconds=took, outcome="stopped")
        return StopReport(machine=machine.name, method="kill", seconds=took, steps=[step])

    def _watch(self, machine: Machine, vmm: Vmm) -> None:
        self._tasks.start(self._watch_end(machine, vmm), name=f"watch {machine.name}")
        self._helper.watchers.start(
            watch_room(self._helper, machine, vmm), name=f"room for {machine.name}"
        )

    def _keep(self, machine: Machine, vmm: Vmm) -> None:
        self._tasks.start(self._keep_connected(machine, vmm), name=f"agent of {machine.name}")

    async def _watch_end(self, machine: Machine, vmm: Vmm) -> None:
        """Wait for the VMM's end and say so. Ends quietly when the helper lets go."""
        try:
            ended = await vmm.wait()
        except asyncio.CancelledError:
            if not self._helper.stopping.is_set():
                raise
            return
        if machine.channel is not None:
            machine.channel.close()
            machine.channel = None
        machine.vmm = None
        machine.unheld.set()
        self._helper.ports.ended(machine)
        self._helper.shares.ended(machine)
        await vmm.close()
        level = logging.WARNING if ended.cause in {"failed", "panic"} else logging.INFO
        log.log(level, "machine %s: its VMM ended: %s", machine.name, ended.reason)
        self._services.events.publish(
            "machine.exited", machine.name, cause=ended.cause, reason=ended.reason,
            vmm_log=ended.log_tail[-2_000:],
        )  # fmt: skip
        await self._on_end(machine, ended)

    async def _keep_connected(self, machine: Machine, vmm: Vmm) -> None:
        """When the agent channel breaks while the VMM goes on, make it anew."""
        while machine.vmm is vmm and not self._helper.stopping.is_set():
            channel = machine.channel
            if channel is None:
                if not await self._reconnect(machine, vmm):
                    return
                continue
            reason = await channel.wait_closed()
            if machine.vmm is not vmm:
                return
            machine.channel = None
            # Mostly it is the VMM that ends, and its pidfd tells so next.
            # If not: no tight loop with a machine that breaks the protocol at once, each time.
            ended = asyncio.create_task(vmm.wait(), name=f"end of {machine.name}?")
            await asyncio.wait({ended}, timeout=RECONNECT_PAUSE)
            ended.cancel()
            if machine.vmm is not vmm or not vmm.running or self._helper.stopping.is_set():
                return
            log.warning("machine %s: %s; connecting again", machine.name, reason)

    async def _reconnect(self, machine: Machine, vmm: Vmm) -> bool:
        """Try until the agent answers; False when the VMM has ended or the helper stops."""
        while machine.vmm is vmm and vmm.running and not self._helper.stopping.is_set():
            channel = None
            try:
                channel = await self.connect(machine)
                async with asyncio.timeout(RECONNECT_DEADLINE):
                    greeting = await channel.hello()
                # Whoever holds the lock is in the middle of something: a capture, a stop.
                async with machine.lock:
                    if machine.vmm is not vmm or not vmm.running:
                        channel.close()
                        return False
                    await self._take_up(machine, channel, greeting)
            except (VmgrError, TimeoutError) as error:
                if channel is not None:
                    channel.close()
                log.warning("machine %s: its agent is not reached: %r", machine.name, error)
            else:
                return True
            ended = asyncio.create_task(vmm.wait(), name=f"end of {machine.name}?")
            await asyncio.wait({ended}, timeout=RECONNECT_PAUSE)
            ended.cancel()
        return False

    def _agent_event(self, machine: Machine, event: AgentEvent) -> None:
        if event.event == "ports":
            self._helper.ports.automatic.heard(machine, listeners_of(event.listening or []))
            return
        if event.event == "call":
            self._helper.host_calls.heard(machine, event)
            return
        log.info("machine %s: agent says %s", machine.name, event.event[:100])
        self._services.events.publish("machine.agent", machine.name, event=event.event[:100])

    # -- using ------------------------------------------------------------------------------

    async def exec(self, machine: Machine, spec: ExecSpec, sink: JobSink) -> Job:
        """Start a command in a running machine.

        Raises:
            WrongStateError: it does not run, or its agent is not reached.
            ExecError: the command could not be started.
        """
        channel = await machine.ready_channel()
        user, locale = spec.user, ""
        if user is None:
            user, locale = await self._helper.accounts.user_of(machine)
        variables, files = await self._helper.secrets.given(machine, spec)
        proxies = await self._helper.credentials.variables(machine)
        environment = {
            **proxies,
            **machine.row.env,
            **({"LANG": locale} if locale else {}),
            **spec.env,
        }
        job = await channel.exec(
            ExecRequest(
                argv=[a.encode() for a in spec.argv],
                env=[
                    *(f"{n}={v}".encode() for n, v in environment.items() if n not in variables),
                    *(name.encode() + b"=" + value for name, value in variables.items()),
                ],
                cwd=spec.cwd.encode() if spec.cwd is not None else None,
                user=user,
                tty=TerminalSize(rows=spec.tty.rows, cols=spec.tty.cols) if spec.tty else None,
                stdin=spec.stdin,
                login=spec.login,
                builtin=spec.builtin,
                detached=spec.detached,
                label=_label(spec),
                private=bool(variables),
                secret_files=files,
            ),
            sink,
        )
        self._helper.clocks.used(machine)
        return job

    async def jobs(self, machine: Machine) -> list[JobInfo]:
        """A running machine's jobs, and those that ended and were not collected."""
        records = await (await machine.ready_channel()).jobs()
        uptime = machine.guest_uptime_ns()
        return [
            JobInfo(
                job=record.job,
                pid=record.pid,
                label=record.label,
                user=record.user,
                tty=record.tty,
                detached=record.detached,
                attached=record.attached,
                running_seconds=max(0, uptime - record.started_ns) / 1e9,
                exit=exit_result(record.exit) if record.exit is not None else None,
            )
            for record in records
        ]


def _label(spec: ExecSpec) -> str:
    text = "login shell" if spec.login else " ".join(spec.argv)
    return text.encode()[:256].decode(errors="ignore")
