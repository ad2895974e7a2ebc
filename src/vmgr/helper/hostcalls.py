"""Machines' commands on this computer: whose calls are taken, what is decided, what is told.

Everything that a machine can make us do is bounded: calls at once and in each second, of one
machine and of all, and events about them. What it sends is bounded by
`vmgr.hostcommands.conversation`.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.hostcommands import HostCommands, HostCommandsChange
from vmgr.errors import UnsupportedError, VmgrError
from vmgr.hostcommands.bounds import Allowance
from vmgr.hostcommands.call import Call, Plan, Refused
from vmgr.hostcommands.desktop import program_for, session_of
from vmgr.hostcommands.paths import Shared, Translation
from vmgr.hostcommands.rights import LONGEST_QUESTION, changed_list, name_of, shown, verdict
from vmgr.userenv import Person

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmgr.agent import AgentChannel, AgentEvent
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.hostcommands.conversation import Asked

__all__ = ["HostCalls", "rights_of"]

_AT_ONCE: Final = 16
_AT_ONCE_OF_ALL: Final = 64
_REFUSALS: Final = 64
"""Under way at once; an agent that is none of a liar's has 32 callers waiting at most."""
_CALLS: Final = (200.0, 100.0)
"""Of one machine: in a burst, and in each second."""
_EVENTS: Final = (200.0, 20.0)

log = logging.getLogger(__name__)


class _Caller:
    """What one machine has left to ask for."""

    def __init__(self) -> None:
        self.at_once = 0
        self.refusing = 0
        self.calls = Allowance(*_CALLS)
        self.events = Allowance(*_EVENTS)
        self.untold = 0
        """Refusals that no event told of, since there were too many."""


class HostCalls:
    """All machines'."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._person = Person()
        self._callers: dict[str, _Caller] = {}
        self._at_once = 0

    # -- what the person says --------------------------------------------------------------------

    async def change(self, machine: Machine, change: HostCommandsChange) -> None:
        """Change what a machine may run here, from its next command on.

        Raises:
            UsageError, NotFoundError: a name is none, or not on the list.
            UnsupportedError: the machine's agent is older than this.
        """
        async with machine.lock:
            before = machine.row.host_commands
            allow = changed_list(before.allow, change.add, change.remove)
            after = HostCommands(mode=change.mode or before.mode, allow=allow)
            await machine.save(host_commands=after)
        if machine.channel is not None and machine.status == "running":
            await self.tell(machine, machine.channel, machine.greeting.features, strict=True)
        self._helper.events.publish(
            "host-commands.changed", machine.name, mode=after.mode, allow=after.allow
        )

    async def tell(
        self,
        machine: Machine,
        channel: AgentChannel,
        features: Sequence[str],
        *,
        strict: bool = False,
    ) -> None:
        """Have a machine's agent make the door, or take it away; a failure is noted.

        Raises:
            VmgrError: it is not made, and `strict` is set.
        """
        wanted = machine.row.host_commands.mode != "none"
        if not wanted and not strict:
            return  # there is none in a machine that booted; and behind one from elsewhere is no
        try:
            if wanted and "calls" not in features:
                raise UnsupportedError(
                    f"the agent in machine {machine.name} is older than host commands",
                    next_step=f"boot it anew: vmgr stop {machine.name}, then "
                    f"vmgr start --cold {machine.name}",
                )
            if "calls" in features:
                await channel.take_calls(machine.runs_as if wanted else None)
        except VmgrError as error:
            if strict:
                raise
            log.warning("machine %s: its way to host commands: %s", machine.name, error)
            self._helper.events.publish(
                "host-commands.unavailable", machine.name, reason=error.message
            )

    # -- what machines ask -----------------------------------------------------------------------

    def heard(self, machine: Machine, event: AgentEvent) -> None:
        """The agent tells of a call."""
        channel = machine.channel
        if event.call is None or channel is None:
            return
        caller = self._caller(machine)
        why = self._why_not(machine, caller)
        start, name = self._helper.watchers.start, f"host command of {machine.name}"
        # Counted here: of the calls that one turn of the loop brings none has begun yet.
        if why is None:
            caller.at_once += 1
            self._at_once += 1
            task = start(self._serve(machine, caller, channel, event.call), name=name)
            task.add_done_callback(lambda _: self._served(caller))
            return
        self._tell(machine, caller, None, f"refused: {why}")
        if caller.refusing < _REFUSALS:  # else it floods: the agent says that nobody came
            caller.refusing += 1
            task = start(self._refuse(channel, event.call, why), name=name)
            task.add_done_callback(lambda _: self._refused(caller))

    def _served(self, caller: _Caller) -> None:
        caller.at_once -= 1
        self._at_once -= 1

    def _refused(self, caller: _Caller) -> None:
        caller.refusing -= 1

    def _why_not(self, machine: Machine, caller: _Caller) -> str | None:
        if machine.row.host_commands.mode == "none":
            return (
                "this machine may run nothing on its host; there, allow it with: "
                f"vmgr host-commands {machine.name} ask"
            )
        if caller.at_once >= _AT_ONCE or self._at_once >= _AT_ONCE_OF_ALL:
            return "too many host commands run at once; wait until some have ended"
        if not caller.calls.take():
            return "too many host commands in a short time; wait a second"
        return None

    def _caller(self, machine: Machine) -> _Caller:
        known = self._callers.get(machine.row.id)
        if known is None:
            there = {one.row.id for one in self._helper.machines.all()}
            self._callers = {id_: one for id_, one in self._callers.items() if id_ in there}
            known = self._callers[machine.row.id] = _Caller()
        return known

    async def _refuse(self, channel: AgentChannel, call: int, why: str) -> None:
        try:
            await channel.refuse_call(call, why)
        except VmgrError as error:  # the agent, or who called, has gone
            log.debug("a call is not refused: %s", error)

    async def _serve(
        self, machine: Machine, caller: _Caller, channel: AgentChannel, number: int
    ) -> None:
        call = Call(functools.partial(self._decide, machine), self._person)
        try:
            with machine.used():
                await call.serve(channel, number)
        except VmgrError as error:
            call.outcome = f"failed: {error.message}"
        self._tell(machine, caller, call.asked, call.outcome)

    def _tell(self, machine: Machine, caller: _Caller, asked: Asked | None, outcome: str) -> None:
        """Each use is an event; of more than a person could read, their number."""
        if not caller.events.take():
            caller.untold += 1
            return
        more = {"untold": caller.untold} if caller.untold else {}
        caller.untold = 0
        # Arguments may be secrets; the log is kept longer than events are.
        name = "" if asked is None else _name(asked)
        log.info("machine %s: host command %s: %s", machine.name, name, outcome)
        command = "" if asked is None else _line(asked)
        self._helper.events.publish(
            "host-command", machine.name, command=command, outcome=outcome, **more
        )

    # -- deciding --------------------------------------------------------------------------------

    async def _decide(self, machine: Machine, asked: Asked) -> Plan:
        rights = machine.row.host_commands
        name = name_of(asked)
        decided = verdict(rights, name)
        if decided == "no":
            why = (
                "is not on the list of commands that this machine may run on its host; there, add "
                f"it with: vmgr host-commands {machine.name} --allow {_readable(name)}"
                if rights.mode == "list"
                else "may not be run: this machine may run nothing on its host"
            )
            raise Refused("refused", f"{_readable(name)} {why}")
        plan = await self._plan(machine, asked)
        if decided == "ask":
            line = _line(asked, None)
            if len(line) > LONGEST_QUESTION:
                raise Refused("refused", "a command of this length is not asked about")
            await self._ask(machine, line)
        return plan

    async def _ask(self, machine: Machine, line: str) -> None:
        title = f"Machine {machine.name} wants to run a command on this computer, as you"
        refusal = await self._helper.authorization.ask(machine.name, title, line)
        if refusal is not None:
            raise Refused("refused", refusal)

    async def _plan(self, machine: Machine, asked: Asked) -> Plan:
        theirs = await self._person.environment()
        in_files = self._helper.executors.in_files
        shared = self._shared(machine)
        extra = {"VMGR_MACHINE": machine.name}
        if asked.verb == "run":
            argv = [os.fsdecode(asked.argv[0])]
            argv += [os.fsdecode(shared.argument(argument)) for argument in asked.argv[1:]]
        else:
            session = await in_files(session_of, theirs.environment)
            extra |= session
            argv = program_for(asked, machine.name, {**theirs.environment, **session}, shared)
        there = None if asked.cwd is None else shared.to_host(asked.cwd)
        program, cwd = await in_files(
            _find, argv[0], theirs.environment.get("PATH", ""), shared, (there, theirs.home)
        )
        if program is None:
            raise Refused("not-found", f"there is no command {_readable(argv[0])} on the host")
        if asked.tty is not None:
            extra["TERM"] = _terminal(asked.term)
        return Plan([program, *argv[1:]], cwd, extra)

    @staticmethod
    def _shared(machine: Machine) -> Translation:
        """The directories that a machine and this computer both see."""
        return Translation(
            Shared(os.fsencode(share.host), os.fsencode(share.guest))
            for share in machine.row.shares
        )


def _find(
    name: str, path: str, shared: Translation, places: Sequence[bytes | Path | None]
) -> tuple[str | None, str]:
    """A command on the person's PATH (None where there is none), and the first place that is there.

    Not a command in a directory that a machine shares: it could have put it there itself.
    """
    program = None
    for directory in path.split(os.pathsep):
        found = shutil.which(name, path=directory) if directory.startswith("/") else None
        if found is not None and shared.to_guest(os.fsencode(os.path.realpath(found))) is None:
            program = found
            break
    there = [os.fsdecode(one) for one in places if one is not None and os.access(one, os.X_OK)]
    return program, next((one for one in there if Path(one).is_dir()), "/")


def _line(asked: Asked, longest: int | None = 300) -> str:
    if asked.verb == "run":
        return shown(asked.argv, longest)
    return f"host {asked.verb} {shown(asked.argv, longest)}".rstrip()


def _name(asked: Asked) -> str:
    return shown(asked.argv[:1]) if asked.verb == "run" else f":{asked.verb}"


def _readable(name: str) -> str:
    return shown([name.encode(errors="surrogateescape")])


def _terminal(term: str) -> str:
    plain = term.replace("-", "").replace(".", "").replace("+", "").replace("_", "")
    return term if plain.isascii() and plain.isalnum() else "xterm"


def rights_of(asked: HostCommands | None) -> HostCommands:
    """What a new machine may run.

    Raises:
        UsageError: a name on its list is none.
    """
    if asked is None:
        return HostCommands()
    return msgspec.structs.replace(asked, allow=changed_list([], asked.allow, []))
