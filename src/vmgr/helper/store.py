"""The state database: SQLite in WAL mode, used only from the store's thread.

Each machine's row is also written to `machine.json` beside its disk. A damaged database is put
aside and rebuilt from those: nobody is asked to repair or delete a file.

Schema history (`PRAGMA user_version`):

1. machines, image_names, notices.

A newer schema than ours is refused: guessing at it could lose what it records.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.hostcommands import HostCommands
from vmgr.api.models import PortForward  # noqa: TC001 (msgspec resolves annotations at run time)
from vmgr.api.volumes import VolumeUse  # noqa: TC001 (likewise)
from vmgr.errors import ConflictError, ResourceError, StateError
from vmgr.helper.userrow import UserRow  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmgr.paths import Paths

__all__ = ["MachineRow", "ServerRow", "ShareRow", "Store"]

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x766D6772  # "vmgr"; shows in file(1), tells our file from another's

log = logging.getLogger(__name__)


class ShareRow(msgspec.Struct, kw_only=True, frozen=True):
    """A directory of this computer in a machine."""

    host: str
    guest: str
    read_only: bool = False
    slot: int
    """Which of the machine's ports it has."""


class ServerRow(msgspec.Struct, kw_only=True, frozen=True):
    """The process that serves a share."""

    slot: int
    pid: int
    start_time: int
    level: str
    """The sandbox that it was started in."""


class MachineRow(msgspec.Struct, kw_only=True, frozen=True):
    """All that is durably known of a machine. Times are Unix seconds."""

    id: str
    name: str
    status: str
    status_reason: str | None = None
    image: str
    image_digest: str
    init: str | None = None
    default_user: str = "root"
    user: UserRow | None = None
    """The person's account in it; None: it has none."""
    placed: str | None = None
    """Which of this computer's files it has, as a digest; empty: none yet; None: an older vmgr made
    it."""
    private: bool = False
    """When it was suspended last, a command with secrets ran in it."""
    user_data: str | None = None
    """For cloud-init."""
    env: dict[str, str] = {}
    cpus: int
    memory_bytes: int
    disk_bytes: int
    ephemeral: bool = False
    number: int | None = None
    """Its number in the network, from which its addresses come."""
    access: str = "full"
    """What it may reach: `full`, `internet` or `none`."""
    allow: list[str] | None = None
    """All that it may reach, within `access`, as rules; None: no allow-list."""
    host_access: list[int] = []
    """TCP ports of this computer's loopback that it may reach."""
    host_access_udp: list[int] = []
    interface: str | None = None
    """The tap that its VMM holds."""
    fallback: bool = False
    """Its VMM's own user-mode network stands in for the switchboard."""
    network_problem: str | None = None
    ports: list[PortForward] = []
    shares: list[ShareRow] = []
    share_ports: int = 0
    """How many ports for shares its VMM has."""
    layout: int = 0
    """`vmgr.vmm.LAYOUT` of when it booted."""
    share_servers: list[ServerRow] = []
    auto_ports: bool | None = None
    run_job: int | None = None
    """Of a `run`'s machine: the command with which it ends; None: not written down yet."""
    host_commands: HostCommands = HostCommands()
    """What it may run on this computer."""
    volumes: list[VolumeUse] = []
    created_at: float
    started_at: float | None = None
    boot_seconds: float | None = None
    boot_id: str | None = None
    booted_init: str | None = None
    kernel: str | None = None
    kernel_digest: str | None = None
    vmm_pid: int | None = None
    vmm_start_time: int | None = None
    host_boot_id: str | None = None
    accelerator: str | None = None
    qemu: str | None = None
    machine_type: str | None = None
    sandbox: str | None = None
    pristine: bool = False
    """It was never started: its disk is as its image, or as `template`."""
    template: str | None = None
    """While it is pristine: the id of the template whose disk it has; None: its image's. Any other
    text: the disk was written to, by a start that did not come to its end."""
    pooled: bool = False
    """It waits for a `run`, and nobody has seen it."""
    cold: bool = False
    """Its first start is to be a boot."""
    started_from: str | None = None
    clone: bool = False
    """It was copied from another machine, and has not become one of its own yet."""
    restoring: str | None = None
    """The id of the snapshot that it is just being restored from."""
    resync_keys: list[bytes] = []
    """Markers that the agent may hold, oldest first (see `vmgr.agent.keys`)."""


_SCHEMA: Final = """
CREATE TABLE machines (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    image_digest TEXT NOT NULL,
    row BLOB NOT NULL
) STRICT;
CREATE TABLE image_names (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    at REAL NOT NULL
) STRICT;
CREATE TABLE notices (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    path TEXT
) STRICT;
CREATE TABLE schema_history (version INTEGER PRIMARY KEY, at REAL NOT NULL) STRICT;
"""


class Store:
    """The database. Every method blocks; call them in the store's thread.

    Raises (all methods): ResourceError when the disk is full, StateError when the file fails.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._db: sqlite3.Connection | None = None

    # -- opening -----------------------------------------------------------------------

    def open(self) -> None:
        """Open the database, making or rebuilding it where needed.

        Raises:
            StateError: it is of a newer vmgr, or not to be opened.
        """
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise StateError(
                    f"cannot open the state database {self._paths.database}: {error}",
                    next_step="check the rights of that file and the free disk space",
                ) from error
            self._rebuild(error)

    def close(self) -> None:
        """Close the database."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _connect(self) -> None:
        path = self._paths.database
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        path.chmod(0o600)
        self._db = db

    def _prepare(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StateError(
                f"the state database {self._paths.database} is of a newer vmgr "
                f"(schema {version}, this one knows up to {SCHEMA_VERSION})",
                next_step="install that vmgr again, or set VMGR_HOME to start afresh beside it",
            )
        db.execute("PRAGMA journal_mode=WAL")
        # WAL with NORMAL loses at most the last transactions in a power cut, never consistency.
        db.execute("PRAGMA synchronous=NORMAL")
        if version == 0:
            self._create(db)
        elif (check := db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(str(check[0]))
        # A missing table is damage as well: find out now, not in the middle of a request.
        db.execute("SELECT id, name, status, image_digest, row FROM machines LIMIT 0")
        db.execute("SELECT name, digest, at FROM image_names LIMIT 0")
        db.execute("SELECT id, text, path FROM notices LIMIT 0")

    def _create(self, db: sqlite3.Connection) -> None:
        # One transaction: a helper killed in the middle leaves an empty database, not half of one.
        db.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA}"  # noqa: S608 (constants of ours)
            f"INSERT INTO schema_history VALUES ({SCHEMA_VERSION}, {time.time()});"
            f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )

    def _rebuild(self, damage: sqlite3.DatabaseError) -> None:
        aside = self._paths.database.with_name(f"vmgr.db.damaged-{time.time_ns()}")
        log.error("the state database is damaged (%s): rebuilding, old one in %s", damage, aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._paths.database}{suffix}").rename(f"{aside}{suffix}")
        self._paths.database.rename(aside)
        self._connect()
        count = 0
        for record in sorted(self._paths.machines.glob("*/machine.json")):
            with contextlib.suppress(msgspec.MsgspecError, OSError, ConflictError):
                row = msgspec.json.decode(record.read_bytes(), type=MachineRow)
                if row.id == record.parent.name:
                    self.save_machine(row)
                    count += 1
        self.add_notice(
            f"the state database was damaged and has been rebuilt: {count} machines found; "
            f"the old file is {aside}"
        )

    # -- machines ------------------------------------------------------------------------

    def machines(self) -> list[MachineRow]:
        """All machines, oldest first."""
        with self._cursor() as db:
            rows = db.execute("SELECT row FROM machines").fetchall()
        machines = [msgspec.json.decode(row, type=MachineRow) for (row,) in rows]
        return sorted(machines, key=lambda m: (m.created_at, m.id))

    def save_machine(self, row: MachineRow) -> None:
        """Insert or replace a machine's row.

        Raises:
            ConflictError: its name belongs to another machine.
        """
        blob = msgspec.json.encode(row)
        with self._cursor() as db:
            try:
                db.execute(
                    "INSERT INTO machines VALUES (?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET"
                    " name=excluded.name, status=excluded.status,"
                    " image_digest=excluded.image_digest, row=excluded.row",
                    (row.id, row.name, row.status, row.image_digest, blob),
                )
            except sqlite3.IntegrityError:
                raise ConflictError(
                    f"there is a machine named {row.name} already",
                    next_step=f"take another name, or remove it with: vmgr rm {row.name}",
                ) from None
        record = self._paths.machine(row.id).record
        if record.parent.is_dir():
            with _disk_errors("the machine's record"):
                _replace(record, blob)

    def delete_machine(self, machine_id: str) -> None:
        """Forget a machine."""
        with self._cursor() as db:
            db.execute("DELETE FROM machines WHERE id=?", (machine_id,))

    # -- image names -----------------------------------------------------------------------

    def image_names(self) -> dict[str, str]:
        """Digest by name."""
        with self._cursor() as db:
            return dict(db.execute("SELECT name, digest FROM image_names ORDER BY name"))

    def name_image(self, name: str, digest: str) -> None:
        """Let `name` mean the image `digest`, whatever it meant before."""
        with self._cursor() as db:
            db.execute(
                "INSERT OR REPLACE INTO image_names VALUES (?,?,?)", (name, digest, time.time())
            )

    def unname_image(self, name: str) -> None:
        """Forget an image's name."""
        with self._cursor() as db:
            db.execute("DELETE FROM image_names WHERE name=?", (name,))

    # -- notices ---------------------------------------------------------------------------

    def add_notice(self, text: str, path: str | None = None) -> None:
        """Keep a line that the person must be told once."""
        with self._cursor() as db:
            db.execute("INSERT INTO notices (text, path) VALUES (?,?)", (text, path))

    def take_notices(self) -> list[str]:
        """All lines that nobody has been told yet; they count as told now."""
        with self._cursor() as db:
            return [text for (text,) in db.execute("DELETE FROM notices RETURNING text").fetchall()]

    # -- machinery -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[sqlite3.Connection]:
        assert self._db is not None  # noqa: S101 (the store is open while the helper serves)
        with _disk_errors("the state database"):
            yield self._db


def _is_damage(error: sqlite3.OperationalError) -> bool:
    """Whether the file's content is to blame, not its rights or the disk."""
    return "no such table" in str(error) or "no such column" in str(error)


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    full = "free some space there"
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise ResourceError(f"no space left to write {what}", next_step=full) from error
        raise StateError(f"cannot use {what}: {error}") from error
    except OSError as error:
        if error.errno in {28, 122}:  # ENOSPC, EDQUOT
            raise ResourceError(f"no space left to write {what}", next_step=full) from error
        raise StateError(f"cannot write {what}: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
