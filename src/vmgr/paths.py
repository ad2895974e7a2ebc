"""Every file vmgr keeps on disk is named here, and nowhere else.

Layout (XDG base directories; `VMGR_HOME` puts all four under one directory, for tests and trials)::

    config/   ~/.config/vmgr            config.toml, helper.environment
    state/    ~/.local/state/vmgr       vmgr.db, helper.log, helper.lock, launch.lock,
                                        switchboard.log, ssh.log, ssh/ (see vmgr.ssh.files),
                                        machines/ID/{machine.json,disk.qcow2,console.log,vmm.log,
                                        saved/{saved.json,memory,devices}},
                                        crashes/
    cache/    ~/.cache/vmgr             kernels/, apt/, probes.json, templates/KEY/{template.json,
                                        memory,devices,disk.qcow2} (all of it can be rebuilt)
    data/     ~/.local/share/vmgr       images/DIGEST/{root.ext4,image.json},
                                        snapshots/ID/{snapshot.json,disk.qcow2,memory,devices,
                                        saved.json}, volumes/NAME/{disk.ext4,volume.json}
    runtime/  $XDG_RUNTIME_DIR/vmgr     helper.sock, switchboard.sock, network.json,
                                        ssh.lock, ssh.json, session,
                                        machines/ID/{qmp,agent,console}.sock
              (else /tmp/vmgr-UID)

The runtime directory is short on purpose: a unix socket's address holds 107 bytes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vmgr.errors import StateError

__all__ = ["Paths", "ensure_private_directory"]

_SOCKET_PATH_MAX = 107  # sizeof(sockaddr_un.sun_path) - 1, see unix(7)


@dataclass(frozen=True)
class Paths:
    """Where one user's vmgr keeps its files."""

    config: Path
    state: Path
    cache: Path
    data: Path
    runtime: Path

    @classmethod
    def from_environment(cls, environ: dict[str, str] | None = None) -> Paths:
        """Read `VMGR_HOME` and the XDG variables; relative values are ignored, as XDG asks."""
        env = os.environ if environ is None else environ

        def absolute(name: str) -> Path | None:
            value = env.get(name, "")
            return Path(value) if value.startswith("/") else None

        if root := absolute("VMGR_HOME"):
            return cls(
                config=root / "config", state=root / "state", cache=root / "cache",
                data=root / "data", runtime=root / "run",
            )  # fmt: skip
        home = absolute("HOME") or Path("~").expanduser()
        runtime = absolute("XDG_RUNTIME_DIR")
        return cls(
            config=(absolute("XDG_CONFIG_HOME") or home / ".config") / "vmgr",
            state=(absolute("XDG_STATE_HOME") or home / ".local/state") / "vmgr",
            cache=(absolute("XDG_CACHE_HOME") or home / ".cache") / "vmgr",
            data=(absolute("XDG_DATA_HOME") or home / ".local/share") / "vmgr",
            runtime=runtime / "vmgr" if runtime else Path(f"/tmp/vmgr-{os.getuid()}"),  # noqa: S108 (checked to be ours and 0700 before use)
        )

    # -- config ----------------------------------------------------------------
    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def service_environment(self) -> Path:
        """The environment of the helper as a service of systemd's."""
        return self.config / "helper.environment"

    # -- state -----------------------------------------------------------------
    @property
    def database(self) -> Path:
        return self.state / "vmgr.db"

    @property
    def helper_log(self) -> Path:
        return self.state / "helper.log"

    @property
    def helper_lock(self) -> Path:
        """Held (flock) by the one running helper; the file itself means nothing."""
        return self.state / "helper.lock"

    @property
    def launch_lock(self) -> Path:
        return self.state / "launch.lock"

    @property
    def crashes(self) -> Path:
        return self.state / "crashes"

    @property
    def machines(self) -> Path:
        return self.state / "machines"

    @property
    def secrets(self) -> Path:
        """Secrets, where no keyring keeps them: a file each."""
        return self.state / "secrets"

    def machine(self, machine_id: str) -> MachinePaths:
        """The files of one machine, by its id (12 hexadecimal digits, never its name)."""
        return MachinePaths(self.machines / machine_id, self.runtime / "machines" / machine_id)

    # -- cache and data -----------------------------------------------------------
    @property
    def kernels(self) -> Path:
        return self.cache / "kernels"

    @property
    def probes(self) -> Path:
        """What was found out about this host: QEMU's version, whether a guest runs on KVM."""
        return self.cache / "probes.json"

    @property
    def apt(self) -> Path:
        return self.cache / "apt"

    @property
    def templates(self) -> Path:
        """Saved machines that others start from."""
        return self.cache / "templates"

    @property
    def images(self) -> Path:
        return self.data / "images"

    @property
    def volumes(self) -> Path:
        return self.data / "volumes"

    @property
    def snapshots(self) -> Path:
        return self.data / "snapshots"

    # -- runtime -----------------------------------------------------------------
    @property
    def helper_socket(self) -> Path:
        return self.runtime / "helper.sock"

    @property
    def switchboard_socket(self) -> Path:
        return self.runtime / "switchboard.sock"

    @property
    def network_record(self) -> Path:
        """Which processes make the network; found again by the next helper."""
        return self.runtime / "network.json"

    @property
    def session_mark(self) -> Path:
        """Made once machines that start by themselves have been started; goes with the session."""
        return self.runtime / "session"

    # -- ssh ---------------------------------------------------------------------
    @property
    def ssh(self) -> Path:
        return self.state / "ssh"

    @property
    def ssh_identity(self) -> Path:
        """The key that the SSH server lets in."""
        return self.ssh / "id_ed25519"

    @property
    def ssh_host_key(self) -> Path:
        return self.ssh / "host_ed25519"

    @property
    def ssh_known_hosts(self) -> Path:
        return self.ssh / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """What ~/.ssh/config includes."""
        return self.ssh / "config"

    @property
    def ssh_port_config(self) -> Path:
        return self.ssh / "port.conf"

    @property
    def ssh_wake(self) -> Path:
        """Starts the SSH server where it does not run."""
        return self.ssh / "wake"

    @property
    def ssh_log(self) -> Path:
        return self.state / "ssh.log"

    @property
    def ssh_lock(self) -> Path:
        """Held (flock) by the running SSH server; the file itself means nothing."""
        return self.runtime / "ssh.lock"

    @property
    def ssh_record(self) -> Path:
        """Which process the SSH server is, and where it listens."""
        return self.runtime / "ssh.json"

    @property
    def switchboard_log(self) -> Path:
        return self.state / "switchboard.log"

    def ensure(self) -> None:
        """Make every directory that is missing, 0700.

        Raises:
            StateError: one belongs to another user, is a symlink or cannot be made; or the runtime
                directory is too long for socket addresses.
        """
        longest = len(os.fsencode(self.runtime)) + len("/machines/0123456789ab/console.sock")
        if longest > _SOCKET_PATH_MAX:
            raise StateError(
                f"the runtime directory {self.runtime} is too long a path for sockets",
                next_step="set XDG_RUNTIME_DIR (or VMGR_HOME) to a shorter directory",
            )
        for directory in (
            self.config, self.state, self.cache, self.data, self.runtime,
            self.machines, self.crashes, self.kernels, self.apt, self.templates, self.images,
            self.snapshots, self.volumes,
            self.runtime / "machines",
        ):  # fmt: skip
            ensure_private_directory(directory)


@dataclass(frozen=True)
class MachinePaths:
    """The files of one machine."""

    state: Path
    runtime: Path

    @property
    def record(self) -> Path:
        """The machine's row as JSON, from which a damaged database is rebuilt."""
        return self.state / "machine.json"

    @property
    def disk(self) -> Path:
        return self.state / "disk.qcow2"

    @property
    def seed(self) -> Path:
        """cloud-init's user-data, as a disk."""
        return self.state / "seed.iso"

    @property
    def saved(self) -> Path:
        """What a suspended machine had in memory."""
        return self.state / "saved"

    @property
    def console_log(self) -> Path:
        return self.state / "console.log"

    @property
    def vmm_log(self) -> Path:
        return self.state / "vmm.log"

    @property
    def qmp_socket(self) -> Path:
        return self.runtime / "qmp.sock"

    @property
    def agent_socket(self) -> Path:
        return self.runtime / "agent.sock"

    @property
    def console_socket(self) -> Path:
        return self.runtime / "console.sock"

    def share_socket(self, slot: int) -> Path:
        return self.runtime / f"share{slot}.sock"

    @property
    def shares_log(self) -> Path:
        """What share servers say, which is little."""
        return self.state / "shares.log"


def ensure_private_directory(path: Path) -> None:
    """Make `path` (and its parents) a directory of mode 0700 that belongs to this user.

    An existing one that is ours but open to others is closed to them. Raises `StateError` when it
    belongs to someone else, is a symlink or cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise StateError(
            f"cannot make the directory {path}: {error.strerror}",
            next_step="check that its parent is writable and the disk is not full",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise StateError(f"{path} is not a directory", next_step="move it out of the way")
    if found.st_uid != os.getuid():
        raise StateError(
            f"{path} belongs to another user (uid {found.st_uid})",
            next_step="set XDG_RUNTIME_DIR or VMGR_HOME to a directory of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
