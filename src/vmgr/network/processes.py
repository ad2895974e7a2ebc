"""The processes that make the network: holder, switchboard, egress.

The **holder** does nothing: it is there so that the namespaces are, whoever else dies. Switchboard
and egress can be killed and started again in the same namespaces; a machine's tap lives there too.
All three outlive the helper. A record names them (pid and start time), so the next helper goes on
with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from vmgr.errors import StateError, UnsupportedError
from vmgr.spawner import Process, StopPolicy, minimal_environment, spawn
from vmgr.spawner.process import start_time_of

if TYPE_CHECKING:
    from vmgr.paths import Paths

__all__ = ["NetworkProcesses", "Record"]

_READY_DEADLINE: Final = 15.0
_SETUP: Final = "echo ready; exec sleep infinity"
_EGRESS_NETWORK: Final = "198.19.255.0/24"  # as vmgr.switchboard.firewall has it
_EGRESS: Final = "egress"


class Named(Struct, frozen=True):
    """A process, for ever: a pid alone may be another's by now."""

    pid: int
    start_time: int


class Record(Struct, frozen=True, kw_only=True):
    """What the next helper must find."""

    holder: Named | None = None
    switchboard: Named | None = None
    egress: Named | None = None


class NetworkProcesses:
    """Starts, finds and ends them. Methods are not called at the same time."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self.holder: Process | None = None
        self.switchboard: Process | None = None
        self.egress: Process | None = None

    def adopt(self) -> None:
        """Take over what an earlier helper started and is still there."""
        try:
            record = msgspec.json.decode(self._paths.network_record.read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return
        for name in ("holder", "switchboard", "egress"):
            named: Named | None = getattr(record, name)
            if named is not None:
                setattr(self, name, Process.adopt(named.pid, named.start_time))

    async def ensure_holder(self) -> Process:
        """The process that keeps the namespaces.

        Raises:
            UnsupportedError: this host does not let us have namespaces.
        """
        if _lives(self.holder):
            assert self.holder is not None  # noqa: S101 (it lives)
            return self.holder
        for process in (self.switchboard, self.egress):  # of namespaces that are no more
            if process is not None and process.running:
                await process.stop(StopPolicy(None))
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                holder = await spawn(
                    ["unshare", "--user", "--net", "--map-root-user", "--", "sh", "-c", _SETUP],
                    env=minimal_environment(VMGR_NETWORK=str(self._paths.runtime)),
                    stdout=write, stderr=write,
                )  # fmt: skip
            finally:
                os.close(write)
            line = await _line(read)
        finally:
            os.close(read)
        if line != "ready":
            await holder.stop(StopPolicy(None))
            raise UnsupportedError(
                f"this host gives no network namespace: {line or 'no answer'}",
                next_step="see the exact fix with: vmgr doctor",
            )
        self.holder = holder
        self._write()
        return holder

    async def start_switchboard(self) -> None:
        """Start a switchboard in the holder's namespaces; it listens when this returns.

        Raises:
            UnsupportedError: it cannot work on this host.
            OSError: it could not be started.
        """
        holder = await self.ensure_holder()
        path = self._paths.switchboard_socket
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        read, write = os.pipe2(os.O_CLOEXEC)
        log = -1
        try:
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(4)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            log = os.open(self._paths.switchboard_log, flags | os.O_NOFOLLOW, 0o600)
            process = await spawn(
                [
                    sys.executable, "-m", "vmgr.switchboard", "--holder", str(holder.pid),
                    "--listen-fd", str(listener.fileno()), "--ready-fd", str(write),
                ],
                env=minimal_environment(
                    VMGR_NETWORK=str(self._paths.runtime), **_python_environment()
                ),
                stdout=log, stderr=log, pass_fds=(listener.fileno(), write),
            )  # fmt: skip
            os.close(write)
            write = -1
            line = await _line(read)
        finally:
            listener.close()
            for fd in (read, write, log):
                if fd >= 0:
                    os.close(fd)
        if line != "ready":
            await process.stop(StopPolicy(None))
            raise UnsupportedError(
                f"the network cannot be set up: {line.removeprefix('error: ') or 'no answer'}",
                next_step=f"see {self._paths.switchboard_log}, and: vmgr doctor",
            )
        self.switchboard = process
        self._write()

    async def start_egress(self) -> None:
        """Start the way to the internet.

        Raises:
            UnsupportedError: slirp4netns is missing or does not start.
        """
        holder = await self.ensure_holder()
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                process = await spawn(
                    [
                        "slirp4netns", "--configure", "--mtu=65520", f"--cidr={_EGRESS_NETWORK}",
                        "--disable-host-loopback", "--disable-dns", "--enable-seccomp",
                        "--enable-sandbox", f"--ready-fd={write}", str(holder.pid), _EGRESS,
                    ],
                    env=minimal_environment(VMGR_NETWORK=str(self._paths.runtime)),
                    pass_fds=(write,),
                )  # fmt: skip
            except FileNotFoundError:
                raise UnsupportedError(
                    "slirp4netns is not installed, so machines have no internet",
                    next_step="run `apt-get install slirp4netns` as root",
                ) from None
            finally:
                os.close(write)
            said = await _line(read)
        finally:
            os.close(read)
        if said != "1":
            await process.stop(StopPolicy(None))
            raise UnsupportedError("slirp4netns did not start, so machines have no internet")
        self.egress = process
        self._write()

    async def stop(self) -> None:
        """End all three."""
        for process in (self.egress, self.switchboard, self.holder):
            if process is not None and process.running:
                await process.stop(StopPolicy(None))
        self.egress = self.switchboard = self.holder = None
        for path in (self._paths.network_record, self._paths.switchboard_socket):
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        record = Record(
            holder=_named(self.holder),
            switchboard=_named(self.switchboard),
            egress=_named(self.egress),
        )
        path = self._paths.network_record
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.write_bytes(msgspec.json.encode(record))
            temporary.replace(path)
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from error


def _lives(process: Process | None) -> bool:
    return process is not None and process.running and start_time_of(process.pid) is not None


def _named(process: Process | None) -> Named | None:
    if process is None or (began := start_time_of(process.pid)) is None:
        return None
    return Named(process.pid, began)


def _python_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}


async def _line(fd: int) -> str:
    """The first line that comes on a pipe; empty when it ends, or nothing comes in time."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    readable = asyncio.Event()
    data = b""
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(_READY_DEADLINE):
            while b"\n" not in data and data != b"1":
                await readable.wait()
                readable.clear()
                with contextlib.suppress(BlockingIOError):
                    part = os.read(fd, 4096)
                    if not part:
                        break
                    data += part
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
    return data.decode(errors="replace").strip().split("\n")[0]
