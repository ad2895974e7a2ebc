"""`vmgr mount`: a machine's files on this computer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmgr.cli.connection import client
from vmgr.cli.output import print_json, table
from vmgr.errors import ConflictError, MachineError, NotFoundError, UsageError, WrongStateError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Mount a machine's files on this computer, without root. DIR is ~/vmgr/NAME unless
you say otherwise. What you do there, the machine's default user does (or -u). The mount goes when
the machine stops. Without NAME, mounts are listed."""
EXAMPLES = """examples:
  vmgr mount web                      # all of it, at ~/vmgr/web
  vmgr mount web:/srv/www ~/www
  vmgr mount --read-only -u root web:/etc /tmp/etc
  vmgr mount
  vmgr umount web"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    place = parser.add_argument("place", metavar="NAME[:PATH]", nargs="?", help="whose, and what")
    place.completer = "places"  # type: ignore[attr-defined]  # read by vmgr.cli.completing
    parser.add_argument("directory", metavar="DIR", nargs="?", help="where; made if need be")
    parser.add_argument("-u", "--user", metavar="USER", help="as whom in the machine")
    parser.add_argument("--read-only", action="store_true", help="nothing can be changed there")
    parser.add_argument("--json", action="store_true", help="list mounts as JSON")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    if options.place is None:
        return _list(as_json=options.json)
    from vmgr.cli.copy.place import place
    from vmgr.cli.mounts import mounts, needed_program, source, unmount

    name, path = place(options.place)
    if name is None:
        if "/" in options.place:
            raise UsageError(
                f"{options.place} names no machine",
                next_step="write it as NAME:PATH, like web:/etc",
            )
        name, path = options.place, "/"
    program = needed_program("sshfs", "sshfs")
    helper = client()
    machine = helper.machine_info(name)
    if machine.status == "stopped":
        raise WrongStateError(
            f"machine {name} is stopped, so its files cannot be mounted",
            next_step=f"start it: vmgr start {name}",
        )
    directory = _directory(options.directory, name)
    for known in mounts():
        if known.directory == str(directory):
            if not known.lives:
                unmount(known, force=True)
            elif (known.machine, known.path) == (name, path):
                print(directory)
                return 0
            else:
                raise ConflictError(
                    f"{known.machine}:{known.path} is mounted at {directory}",
                    next_step=f"take it away first: vmgr umount {known.machine}",
                )
    _prepare(directory)
    login = name if options.user is None else f"{options.user}@{name}"
    config = helper.ssh_start().config
    wanted = [
        f"fsname={source(name, path)}",
        # Links are followed in the machine: here they would lead to this computer's own files.
        "follow_symlinks", "idmap=user", "nosuid", "nodev", "auto_unmount",
        # What does not answer any more gives errors instead of hanging whoever looks.
        "ServerAliveInterval=10", "ServerAliveCountMax=3", "BatchMode=yes",
        *(["ro"] if options.read_only else []),
    ]  # fmt: skip
    _run([program, "-F", config, "-o", ",".join(wanted), f"{login}@vmgr:{path}", str(directory)])
    print(directory)
    return 0


def _run(command: list[str]) -> None:
    from vmgr.spawner import run_in_foreground

    status = run_in_foreground(command)
    if not status.ok:
        raise MachineError(
            f"sshfs could not mount it ({status})",
            next_step="what it said is above; see also: vmgr doctor",
        )


def _directory(asked: str | None, name: str) -> Path:
    import os

    from vmgr.cli.mounts import default_parent

    chosen = default_parent() / name if asked is None else Path(asked)
    # Not resolved: a dead mount cannot be looked at.
    return Path(os.path.abspath(chosen))  # noqa: PTH100 (likewise)


def _prepare(directory: Path) -> None:
    """Make the directory, or see that nothing would be hidden by the mount."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConflictError(
                f"{directory} is not empty", next_step="name an empty directory, or one to be made"
            )
    except OSError as error:
        raise NotFoundError(f"{directory} cannot be used: {error.strerror}") from error


def _list(*, as_json: bool) -> int:
    from vmgr.cli.mounts import mounts

    found = mounts()
    if as_json:
        print_json([{**mount._asdict(), "answers": mount.lives} for mount in found])
        return 0
    table(
        ("MACHINE", "PATH", "DIRECTORY", "MODE", "NOTE"),
        [
            (
                one.machine, one.path, one.directory, "ro" if one.read_only else "rw",
                "" if one.lives else "nobody serves it any more; vmgr umount takes it away",
            )
            for one in found
        ],
    )  # fmt: skip
    return 0
