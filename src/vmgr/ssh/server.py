"""One SSH connection: who may have it, and what it may ask for.

Only this user's own key comes in. Until it has, a connection can ask for nothing, has 20 seconds,
and is one of a few; packets are at most 36 KB long then (asyncssh). Key exchanges are the cheap
ones, and nothing is compressed: a small message must not become a large one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import asyncssh

from vmgr.errors import VmgrError
from vmgr.ssh.forwarding import AgentListener, Connection, RemoteListener
from vmgr.ssh.jobs import Target
from vmgr.ssh.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from vmgr.client.aio import AsyncClient
    from vmgr.ssh.files import Keys

__all__ = ["Door", "Server", "listen"]

UNKNOWN_MAX: Final = 32  # connections that have not said who they are
CONNECTIONS_MAX: Final = 512
LOGIN_DEADLINE: Final = 20

log = logging.getLogger(__name__)


class Door:
    """All connections."""

    def __init__(self, client: AsyncClient, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.unknown: set[Server] = set()
        self.known: set[Server] = set()
        self.turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """For each machine that connections are for: who may start a job now."""
        self.empty = asyncio.Event()
        self.empty.set()

    def enter(self, server: Server) -> bool:
        """A connection comes; False where there is no room for it."""
        if len(self.unknown) >= UNKNOWN_MAX or len(self.known) >= CONNECTIONS_MAX:
            return False
        self.unknown.add(server)
        return True

    def knows(self, server: Server) -> None:
        """A connection has shown the key."""
        self.unknown.discard(server)
        self.known.add(server)
        self.empty.clear()

    def leave(self, server: Server) -> None:
        """A connection has gone."""
        self.unknown.discard(server)
        self.known.discard(server)
        if not self.known:
            self.empty.set()


class Server(asyncssh.SSHServer):
    """One connection."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._agent: AgentListener | None = None
        self._agent_lock = asyncio.Lock()
        self._listeners: list[RemoteListener] = []

    # -- coming and going ----------------------------------------------------------------------
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """See `asyncssh.SSHServer`."""
        self.connection = conn
        if not self._door.enter(self):
            log.warning("too many connections: one is turned away")
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (an end is an end)
        """See `asyncssh.SSHServer`."""
        self._door.leave(self)
        if self._agent is not None:
            self._agent.close()
        for listener in self._listeners:
            listener.close()

    # -- who may come in -----------------------------------------------------------------------
    def begin_auth(self, username: str) -> bool:
        """See `asyncssh.SSHServer`."""
        self.target = Target(self._door.client, username, self._door.turns)
        return True

    def public_key_auth_supported(self) -> bool:
        """See `asyncssh.SSHServer`. There is no other way in."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        """See `asyncssh.SSHServer`."""
        return key.public_data == self._door.keys.client.public_data

    def password_auth_supported(self) -> bool:
        """See `asyncssh.SSHServer`."""
        return False

    def kbdint_auth_supported(self) -> bool:
        """See `asyncssh.SSHServer`."""
        return False

    def auth_completed(self) -> None:
        """See `asyncssh.SSHServer`."""
        self._door.knows(self)

    # -- what it may ask for -------------------------------------------------------------------
    def session_requested(self) -> Session:
        """See `asyncssh.SSHServer`."""
        return Session(self)

    def connection_requested(
        self,
        dest_host: str,
        dest_port: int,
        orig_host: str,  # noqa: ARG002 (nothing in the machine asks for it)
        orig_port: int,  # noqa: ARG002
    ) -> Awaitable[asyncssh.SSHTCPSession[bytes]]:
        """See `asyncssh.SSHServer`: a TCP connection from within the machine."""
        return Connection.to(self.target, dest_host, str(dest_port))

    def unix_connection_requested(
        self, dest_path: str
    ) -> Awaitable[asyncssh.SSHUNIXSession[bytes]]:
        """See `asyncssh.SSHServer`: a connection to a unix socket in the machine."""
        return Connection.to(self.target, "--unix", dest_path)

    async def server_requested(self, listen_host: str, listen_port: int) -> asyncssh.SSHListener:
        """See `asyncssh.SSHServer`: a listening port in the machine."""

        def hand_on(connection: Connection, peer: tuple[str, int]) -> Awaitable[object]:
            return self.connection.create_connection(
                lambda: connection, listen_host, listener.get_port(), *peer
            )

        listener = RemoteListener(self.target, hand_on)
        return await self._listen(listener, listen_host, str(listen_port))

    async def unix_server_requested(self, listen_path: str) -> asyncssh.SSHListener:
        """See `asyncssh.SSHServer`: a listening unix socket in the machine."""

        def hand_on(connection: Connection, _peer: tuple[str, int]) -> Awaitable[object]:
            return self.connection.create_unix_connection(lambda: connection, listen_path)

        return await self._listen(RemoteListener(self.target, hand_on), "--unix", listen_path)

    async def _listen(self, listener: RemoteListener, *where: str) -> RemoteListener:
        try:
            await listener.open(*where)
        except VmgrError as error:
            log.info("%s: no listener: %s", self.target.machine, error)
            # What asyncssh takes for "it could not be done".
            raise OSError(str(error)) from None
        self._listeners.append(listener)
        return listener

    # -- for its sessions ----------------------------------------------------------------------
    def session_environment(self) -> dict[str, str]:
        """What an SSH server tells its sessions."""
        peer = self.connection.get_extra_info("peername") or ("127.0.0.1", 0)
        own = self.connection.get_extra_info("sockname") or ("127.0.0.1", 0)
        return {
            "SSH_CLIENT": f"{peer[0]} {peer[1]} {own[1]}",
            "SSH_CONNECTION": f"{peer[0]} {peer[1]} {own[0]} {own[1]}",
        }

    async def agent_path(self) -> str | None:
        """The socket in the machine that leads to the client's ssh-agent.

        None where the machine is not one of the setting `ssh.agent`.
        """
        async with self._agent_lock:
            if self._agent is None:
                allowed = (await self._door.client.config_get("ssh.agent")).value
                if self.target.machine not in str(allowed).split():
                    return None
                agent = AgentListener(self.target, self.connection)
                await agent.open("--agent")
                self._agent = agent
            return self._agent.path


async def listen(door: Door, port: int) -> asyncssh.SSHAcceptor:
    """Listen on this computer's loopback.

    Raises:
        OSError: the port is taken.
    """
    return await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: Server(door),
        server_host_keys=[door.keys.host],
        # Clients go by this name to know the order of a symlink's two names in SFTP.
        server_version="OpenSSH_compatible_vmgr",
        kex_algs=["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"],
        encryption_algs=[
            "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
            "aes256-ctr", "aes128-ctr",
        ],
        mac_algs=["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"],
        compression_algs=["none"],
        encoding=None,
        line_editor=False,
        agent_forwarding=True,  # that is, it may be asked for; see Server.agent_path
        gss_host=None,
        login_timeout=LOGIN_DEADLINE,
        backlog=128,
    )  # fmt: skip
