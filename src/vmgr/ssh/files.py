"""The files of the SSH server: keys, made once, and what OpenSSH's client reads.

id_ed25519, id_ed25519.pub    who may come in: this user
host_ed25519, known_hosts     who we are, and what the client compares that with
config                        to be included in ~/.ssh/config
port.conf                     included by `config`, after `wake` has run
wake                          starts the server where it does not run
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncssh

from vmgr.paths import ensure_private_directory

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.paths import Paths

__all__ = ["Keys", "load_keys", "write_client_files", "write_port"]

HOST: Final = "vmgr"
_PLACES: Final = (
    "VMGR_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
)  # fmt: skip


@dataclass(frozen=True)
class Keys:
    """Whom the server lets in, and as whom it speaks."""

    host: asyncssh.SSHKey
    client: asyncssh.SSHKey


def load_keys(paths: Paths) -> Keys:
    """Read the keys; those that are missing are made."""
    ensure_private_directory(paths.ssh)
    return Keys(
        host=_key(paths.ssh_host_key, "vmgr host key"),
        client=_key(paths.ssh_identity, "vmgr"),
    )


def _key(path: Path, comment: str) -> asyncssh.SSHKey:
    try:
        key = asyncssh.read_private_key(path)
    except (FileNotFoundError, asyncssh.KeyImportError):
        key = asyncssh.generate_private_key("ssh-ed25519", comment)
        _write(path, key.export_private_key())
    public = path.with_name(f"{path.name}.pub")
    text = key.export_public_key()
    if not public.exists() or public.read_bytes() != text:
        _write(public, text)
    return key


def write_client_files(paths: Paths, keys: Keys) -> None:
    """Write what OpenSSH's client needs, where it is not as it should be."""
    known = b"%s %s" % (HOST.encode(), keys.host.export_public_key())
    _keep(paths.ssh_known_hosts, known)
    _keep(paths.ssh_wake, _wake_text(paths).encode(), 0o700)
    _keep(paths.ssh_config, _config_text(paths).encode())


def write_port(paths: Paths, port: int) -> None:
    """Say on which port the server listens from now on."""
    _keep(paths.ssh_port_config, f"# Written by vmgr.\nPort {port}\n".encode())


def _config_text(paths: Paths) -> str:
    # A percent sign begins a token of ssh_config(5) in these values.
    wake = shlex.quote(str(paths.ssh_wake)).replace("%", "%%")
    identity, known = (
        str(path).replace("%", "%%") for path in (paths.ssh_identity, paths.ssh_known_hosts)
    )
    return f"""\
# Written by vmgr; changes are lost. ~/.ssh/config includes it: see `vmgr ssh-config --help`.
#   ssh MACHINE@{HOST}          ssh USER@MACHINE@{HOST}
Match originalhost {HOST} exec "{wake}"
Host {HOST}
    HostName 127.0.0.1
    HostKeyAlias {HOST}
    IdentityFile "{identity}"
    IdentitiesOnly yes
    PreferredAuthentications publickey
    UserKnownHostsFile "{known}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    CheckHostIP no
    Compression no
    Ciphers aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com
    Include "{paths.ssh_port_config}"
# So that what follows the line that includes this file is for all hosts again.
Match all
"""


def _wake_text(paths: Paths) -> str:
    lock = shlex.quote(str(paths.ssh_lock))
    places = [f"{name}={os.environ[name]}" for name in _PLACES if os.environ.get(name)]
    command = shlex.join(
        ["env", *places, sys.executable, "-P", "-m", "vmgr.cli", "ssh-config", "--start"]
    )
    return f"""\
#!/bin/sh
# Written by vmgr: starts its SSH server, which holds this lock while it runs.
flock --nonblock --shared --conflict-exit-code 75 {lock} true 2>/dev/null
test $? -eq 75 || exec {command}
"""


def _keep(path: Path, text: bytes, mode: int = 0o600) -> None:
    try:
        if path.read_bytes() == text and path.stat().st_mode & 0o777 == mode:
            return
    except OSError:
        pass
    _write(path, text, mode)


def _write(path: Path, text: bytes, mode: int = 0o600) -> None:
    """Make a file appear whole."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
