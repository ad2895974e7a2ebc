"""`vmgr ssh-config`: make `ssh MACHINE@vmgr` work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmgr.cli.confirming import can_be_asked, confirmed
from vmgr.cli.connection import client
from vmgr.errors import StateError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Let ssh, scp, sftp, rsync and all that use them reach your machines, as
MACHINE@vmgr or USER@MACHINE@vmgr. What OpenSSH's client needs to know is in a file that vmgr
writes; this offers to add the line that includes it to ~/.ssh/config."""
EXAMPLES = """examples:
  vmgr ssh-config                     # ask, then add the line
  vmgr ssh-config --add               # add it without asking
  ssh web@vmgr
  scp -r site/ ann@web@vmgr:/srv/
  vmgr ssh-config --print > config && ssh -F config web@vmgr"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--add", action="store_true", help="add the line without asking")
    what.add_argument("--remove", action="store_true", help="take the line out again")
    what.add_argument(
        "--print", action="store_true", help="print the configuration, for ssh -F; change nothing"
    )
    what.add_argument(
        "--start", action="store_true", help="only have the SSH server run; ssh itself asks for it"
    )


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    if options.remove:
        line = _line(client(launch=False).paths.ssh_config)
        _rewrite(line, add=False)
        print(f"{_config()} does not include vmgr's configuration")
        return 0
    server = client().ssh_start()
    if options.start:
        return 0
    if options.print:
        print(Path(server.config).read_text(), end="")
        return 0
    line = _line(Path(server.config))
    if _has(line):
        print("ssh MACHINE@vmgr works")
        return 0
    if not options.add and not _agreed(line):
        print(f"To use ssh MACHINE@vmgr, put this line at the top of {_config()}:\n{line}")
        return 0
    _rewrite(line, add=True)
    print(f"Added to {_config()}; ssh MACHINE@vmgr works")
    return 0


def _config() -> Path:
    return Path("~/.ssh/config").expanduser()


def _line(path: Path) -> str:
    return f'Include "{path}"'


def _has(line: str) -> bool:
    try:
        text = _config().read_bytes()
    except OSError:
        return False
    return line.encode() in [found.strip() for found in text.splitlines()]


def _agreed(line: str) -> bool:
    """Ask, where there is somebody to ask."""
    return can_be_asked() and confirmed(f"Add this line at the top of {_config()}?  {line} ")


def _rewrite(line: str, *, add: bool) -> None:
    """Add or remove our line; every other byte, the file's mode and a link to it stay."""
    path = _config()
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # What a person keeps elsewhere and links to is changed there.
        path = path.resolve()
        try:
            before, mode = path.read_bytes(), path.stat().st_mode & 0o777
        except FileNotFoundError:
            if not add:
                return
            before, mode = b"", 0o600
        kept = [
            found for found in before.splitlines(keepends=True) if found.strip() != line.encode()
        ]
        text = b"".join([line.encode() + b"\n", *kept] if add else kept)
        if text == before:
            return
        temporary = path.with_name(f".{path.name}.vmgr-{os.getpid()}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(fd, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(
            f"cannot change {path}: {error.strerror}",
            next_step=f"put this line at its top yourself: {line}",
        ) from error
