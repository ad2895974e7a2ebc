"""One session of an SSH client: a shell, a command or a file transfer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Final, cast

import asyncssh

from vmgr.api.models import ExecSpec, TerminalSize
from vmgr.errors import ExecError, VmgrError
from vmgr.ssh.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmgr.api.models import ExitResult
    from vmgr.ssh.pump import Channel
    from vmgr.ssh.server import Server

__all__ = ["Session", "accepted_environment"]

FAILED: Final = 255  # as ssh itself says it
_COMMAND_FAILED: Final = (126, 127)
_CELLS_MAX: Final = 65_535
_VARIABLES_MAX: Final = 64
_VARIABLE_MAX: Final = 4_096
_ACCEPTED: Final = frozenset({"LANG", "LANGUAGE", "COLORTERM", "NO_COLOR", "GIT_PROTOCOL", "TZ"})
_ACCEPTED_PREFIXES: Final = ("LC_", "VMGR_ENV_")
# RFC 4254, 6.10: what an exit may be called; others are told as exit codes.
_SIGNALS: Final = {
    getattr(signal, f"SIG{name}"): name
    for name in (
        "ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM",
        "USR1", "USR2",
    )
}  # fmt: skip

log = logging.getLogger(__name__)


def accepted_environment(asked: Mapping[bytes, bytes]) -> dict[str, str]:
    """What of the client's environment a session gets: language and little else, and not much."""
    accepted: dict[str, str] = {}
    for name, value in asked.items():
        if len(name) + len(value) > _VARIABLE_MAX or len(accepted) >= _VARIABLES_MAX:
            continue
        try:
            text, content = name.decode("ascii"), value.decode()
        except UnicodeDecodeError:
            continue
        plain = text.replace("_", "a").isalnum() and "\0" not in content
        if plain and (text in _ACCEPTED or text.startswith(_ACCEPTED_PREFIXES)):
            accepted[text] = content
    return accepted


class Session(asyncssh.SSHServerSession[bytes]):
    """Runs one job for one channel, and ends with either."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pump = Pump()
        self._spec: ExecSpec | None = None
        self._tty: TerminalSize | None = None
        self._term = ""
        self._task: asyncio.Task[None] | None = None

    # -- what asyncssh calls -------------------------------------------------------------------
    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """See `asyncssh.SSHServerSession`."""
        self._channel = chan
        self._pump.opened(cast("Channel", chan))

    def pty_requested(
        self,
        term_type: str,
        term_size: tuple[int, int, int, int],
        term_modes: Mapping[int, int],  # noqa: ARG002 (the terminal's own are the usual ones)
    ) -> bool:
        """See `asyncssh.SSHServerSession`."""
        self._tty = _size(*term_size[:2])
        self._term = term_type[:_VARIABLE_MAX].replace("\0", "")
        return True

    def shell_requested(self) -> bool:
        """See `asyncssh.SSHServerSession`."""
        self._spec = ExecSpec(login=True)
        return True

    def exec_requested(self, command: str) -> bool:
        """See `asyncssh.SSHServerSession`."""
        self._spec = ExecSpec(argv=["shell", command], builtin="shell")
        return "\0" not in command

    def subsystem_requested(self, subsystem: str) -> bool:
        """See `asyncssh.SSHServerSession`."""
        self._spec = ExecSpec(argv=["sftp"], builtin="sftp")
        return subsystem == "sftp"

    def session_started(self) -> None:
        """See `asyncssh.SSHServerSession`."""
        self._task = asyncio.create_task(self._run(), name="ssh session")

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002
        """See `asyncssh.SSHServerSession`."""
        self._pump.received(data)

    def eof_received(self) -> bool:
        """See `asyncssh.SSHServerSession`. The channel stays open for what the job says."""
        if self._tty is None:
            self._pump.received_end()
        return True

    def pause_writing(self) -> None:
        """See `asyncssh.SSHServerSession`."""
        self._pump.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncssh.SSHServerSession`."""
        self._pump.resume_writing()

    def terminal_size_changed(
        self,
        width: int,
        height: int,
        pixwidth: int,  # noqa: ARG002 (the agent's terminals have cells only)
        pixheight: int,  # noqa: ARG002
    ) -> None:
        """See `asyncssh.SSHServerSession`."""
        self._tty = _size(width, height)
        self._pump.resize(self._tty)

    def signal_received(self, signal: str) -> None:
        """See `asyncssh.SSHServerSession`."""
        number = next((n for n, name in _SIGNALS.items() if name == signal), None)
        if number is not None:
            self._pump.signal(number)

    def break_received(self, msec: int) -> bool:  # noqa: ARG002 (a terminal has no time for it)
        """See `asyncssh.SSHServerSession`."""
        self._pump.signal(signal.SIGINT)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (an end is an end)
        """See `asyncssh.SSHServerSession`. Whoever vanishes ends the job."""
        if self._task is not None:
            self._task.cancel()

    # -- the job -------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            self._exit(await self._job())
        except VmgrError as error:
            self._say(f"vmgr: {error}\n")
            # Codes of commands that could not be started are those that a shell gives.
            code = error.exit_code if isinstance(error, ExecError) else FAILED
            code = code if code in _COMMAND_FAILED else FAILED
            with contextlib.suppress(OSError):
                self._channel.exit(code)
        except Exception:
            # A mistake of ours must not leave its client waiting, nor take other sessions along.
            log.exception("a session in %s failed", self._server.target.machine)
            self._say("vmgr: an error of vmgr's SSH server; see ssh.log in its state directory\n")
            with contextlib.suppress(OSError):
                self._channel.exit(FAILED)

    async def _job(self) -> ExitResult:
        assert self._spec is not None  # noqa: S101 (a session that was started was asked for)
        env = accepted_environment(self._channel.get_environment_bytes())
        if self._tty is not None and self._term:
            env["TERM"] = self._term
        env |= self._server.session_environment()
        if self._channel.get_agent_path() is not None and (path := await self._server.agent_path()):
            env["SSH_AUTH_SOCK"] = path
        target = self._server.target
        spec = ExecSpec(
            argv=self._spec.argv, login=self._spec.login, builtin=self._spec.builtin,
            env=env, user=target.user, tty=self._tty, stdin=True,
        )  # fmt: skip
        return await self._pump.run(await target.start(spec))

    def _exit(self, result: ExitResult) -> None:
        name = None if result.signal is None else _SIGNALS.get(result.signal)
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if name is not None:
                self._channel.exit_with_signal(name, core_dumped=result.core)
            else:
                self._channel.exit(result.exit_code)

    def _say(self, text: str) -> None:
        ends = "\r\n" if self._tty is not None else "\n"
        with contextlib.suppress(OSError):
            self._channel.write_stderr(text.replace("\n", ends).encode())


def _size(width: int, height: int) -> TerminalSize:
    """A size that a terminal can have; none is told as zero."""
    cols, rows = (min(max(0, cells), _CELLS_MAX) for cells in (width, height))
    return TerminalSize(rows=rows or 24, cols=cols or 80)
