"""The person's account in their named machines: who it is, made at the start, used by commands.

The agent makes it (`agent/src/builtins/account.rs`), beside the start and not as a part of it: only
a command that runs as this user waits for it. What it finds there already is used as it is, and
where none can be had, commands run as the image's own user as before, which the person is told.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from vmgr.agent.frames import ProtocolViolation
from vmgr.agent.messages import Message, decode
from vmgr.errors import AgentError, ExecError, UsageError, VmgrError
from vmgr.helper.userrow import UserRow

if TYPE_CHECKING:
    from vmgr.agent import AgentChannel
    from vmgr.api.models import CreateMachine
    from vmgr.config import Config
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.image import Image

__all__ = ["Accounts"]

_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_FIRST: Final = 1_000
_DEADLINE: Final = 60.0
_MOST: Final = 4_096
_State = Annotated[str, Meta(pattern=r"^[a-z-]{1,32}$")]
_User = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.@$-]{0,127})?$")]
_Locale = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.@-]{0,64}$")]

log = logging.getLogger(__name__)


class _Account(Message, frozen=True):
    """What the agent says of the account."""

    state: _State
    name: _User = ""
    uid: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    sudo: bool = False
    locale: _Locale = ""


class Accounts:
    """Those of all machines."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._making: dict[str, asyncio.Task[None]] = {}

    def wanted(self, request: CreateMachine, image: Image, config: Config) -> UserRow | None:
        """The account that a new machine is to have; None: its image's user serves.

        Raises:
            UsageError: it cannot be a user's name.
        """
        if request.user is not None:
            return _account(request.user, config, exactly=True)
        mine = str(config.get("user.default")) == "me"
        if request.ephemeral or not mine or image.default_user not in {"root", "0"}:
            return None
        return _account(None, config, exactly=False)

    async def named(self, name: str) -> UserRow | None:
        """The account of that name; None for root.

        Raises:
            UsageError: it cannot be a user's name.
        """
        return _account(name, await self._helper.settings(), exactly=True)

    def begin(self, machine: Machine) -> None:
        """A machine has started: see that it has the account."""
        user, row = machine.row.user, machine.row
        if user is None or (user.run_as and row.started_from in {"suspended", "fork"}):
            return
        self._making[row.id] = task = self._helper.watchers.start(
            self._make(machine), name=f"account in {machine.name}"
        )
        task.add_done_callback(lambda done: self._done(row.id, done))

    def _done(self, machine_id: str, task: asyncio.Task[None]) -> None:
        if self._making.get(machine_id) is task:
            del self._making[machine_id]

    async def user_of(self, machine: Machine) -> tuple[str, str]:
        """As whom commands run in it that say nothing else, and their locale ("": the image's)."""
        if machine.row.user is None:
            return machine.row.default_user, ""
        if (making := self._making.get(machine.row.id)) is not None:
            await asyncio.wait({making})
        elif machine.row.user.state is None:  # started by a helper that died over it
            await self._make(machine)
        return machine.runs_as, machine.row.user.lang

    async def _make(self, machine: Machine) -> None:
        user = machine.row.user
        assert user is not None  # noqa: S101 (asked for by both callers)
        try:
            channel = await machine.ready_channel()
            found, problem = await _ask(channel, user)
        except (VmgrError, TimeoutError, ProtocolViolation) as error:
            log.warning("machine %s: no account %s: %s", machine.name, user.name, error)
            return
        after = msgspec.structs.replace(
            user,
            state=found.state,
            run_as=found.name or None,
            sudo=found.sudo,
            lang=found.locale,
        )
        if after == user:
            return
        # That it is there is what a later look finds of one that was made.
        if {user.state, after.state} <= {"made", "there"} or user.state == after.state:
            notice = None
        else:
            notice = _notice(machine.name, user, found, problem)
        await machine.save(user=after)
        if after.run_as != user.run_as:
            # They are who may call this computer.
            await self._helper.host_calls.tell(machine, channel, machine.greeting.features)
            await self._helper.shares.renew(machine)
        if problem:
            log.warning("machine %s: account %s: %s", machine.name, user.name, problem)
        if notice is not None:
            log.info("%s", notice)
            self._helper.tell(notice)


async def _ask(channel: AgentChannel, user: UserRow) -> tuple[_Account, str]:
    """What became of the account, and what did not work."""
    words = [
        "account",
        user.name,
        str(user.uid),
        str(user.gid),
        user.group,
        user.shell,
        user.locale,
    ]
    try:
        done = await channel.run(
            [word.encode() for word in words], builtin="account", limit=_MOST, deadline=_DEADLINE
        )
    except ExecError as error:
        raise AgentError(f"its agent cannot make accounts: {error.message}") from error
    said = "".join(c if c.isprintable() else " " for c in done.stderr.decode(errors="replace"))
    said = said.strip()[:200]
    if not done.stdout:
        return _Account(state="failed"), said
    return decode(done.stdout, _Account), said


def _notice(machine: str, user: UserRow, found: _Account, problem: str) -> str | None:
    """What the person should know of how their account came out."""
    name = user.name
    match found.state:
        case "made" | "there":
            return None
        case "other-number":
            return (
                f"machine {machine} has a user {name} of its own with the number {found.uid}, not "
                f"{user.uid}; it is used as it is"
            )
        case "number-of-another":
            return (
                f"in machine {machine} the number {user.uid} is user {found.name}'s, who is used "
                f"as it is in place of {name}; root is reached with -u root"
            )
        case "made-with-other-number":
            return (
                f"in machine {machine} {name} has the number {found.uid}, since {user.uid} is one "
                "of the system's there"
            )
        case "taken":
            return (
                f"in machine {machine} {name} is one of the system's own users, so commands run as "
                "root; choose another name with: vmgr create --user NAME"
            )
    return f"machine {machine} has no account {name}, so commands run as its image's user" + (
        f": {problem}" if problem else ""
    )


def _account(name: str | None, config: Config, *, exactly: bool) -> UserRow | None:
    """An account by that name, with this person's numbers where it is theirs; None for root."""
    uid, gid = os.getuid(), os.getgid()
    shell = str(config.get("user.shell"))
    try:
        person: pwd.struct_passwd | None = pwd.getpwuid(uid)
    except KeyError:  # a container's number without a name
        person = None
    if not exactly:
        name = _fitting(person.pw_name if person is not None else f"user{uid}")
        if uid == 0:
            return None
    assert name is not None  # noqa: S101
    if name == "root":
        return None
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name[:40]!r} cannot be a user's name",
            next_step="take lower-case letters, digits, - and _, at most 32 of them",
        )
    group = _group(gid, name)
    if uid == 0:
        uid, gid, group = _FIRST, _FIRST, name
    return UserRow(
        name=name,
        uid=uid,
        gid=gid,
        group=group,
        shell=shell or (person.pw_shell if person is not None else ""),
        locale=_locale(str(config.get("user.locale"))),
    )


def _fitting(name: str) -> str:
    """A name of this computer as one that every Linux takes."""
    fitting = re.sub(r"[^a-z0-9_-]", "_", name.lower())[:32]
    return fitting if _NAME.fullmatch(fitting) else f"_{fitting}"[:32]


def _group(gid: int, name: str) -> str:
    try:
        found = grp.getgrgid(gid).gr_name
    except KeyError:
        return name
    return found if gid != 0 and _NAME.fullmatch(found) else name


def _locale(setting: str) -> str:
    if setting != "host":
        return setting
    # The helper's own environment is that of whatever started it; see helper_environment().
    told = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    return told if re.fullmatch(r"[A-Za-z0-9_.@-]{1,64}", told) else ""
