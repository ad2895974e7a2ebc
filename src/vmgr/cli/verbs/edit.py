"""`vmgr edit`: a machine's file in the person's editor."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.cli.connection import client
from vmgr.cli.copy.place import in_machine
from vmgr.cli.copy.transfer import Remote
from vmgr.cli.output import note
from vmgr.errors import ConflictError, MachineError, ResourceError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Edit a file of a machine with $VISUAL or $EDITOR of this host. When the editor has
ended and the text has changed, the file in the machine is replaced at once, with its mode and
owner; if somebody else has changed it meanwhile it is left as it is, and yours is kept here."""
EXAMPLES = """examples:
  vmgr edit web:/etc/hosts
  EDITOR='code --wait' vmgr edit web:app/settings.py"""

_MOST: Final = 64 << 20
_EDITORS: Final = ("sensible-editor", "editor", "nano", "vim", "vi")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="as whom, in the machine")
    file = parser.add_argument("file", metavar="NAME:PATH", help="the file; made where missing")
    file.completer = "places"  # type: ignore[attr-defined]  # read by vmgr.cli.completing


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    machine, path = in_machine(options.file)
    editor = _editor()
    problems: list[str] = []
    remote = Remote(client(), machine, options.user, problems.append)
    before = remote.stat(path)
    if before.kind not in {"file", "missing"}:
        raise UsageError(f"{options.file} is no file that can be edited ({before.kind})")
    content = b"" if before.kind == "missing" else _read(remote, path, problems)
    directory = Path(tempfile.mkdtemp(prefix="vmgr-edit-"))
    copy = directory / (Path(path).name or "file")
    copy.write_bytes(content)
    kept = False
    try:
        edited = _edited(editor, copy)
        if edited == content:
            note(f"vmgr: {options.file} is left as it is.")
            return 0
        kept = True
        _write(remote, path, copy, before.mark, problems)
        kept = False
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


def _editor() -> str:
    for name in ("VISUAL", "EDITOR"):
        if editor := os.environ.get(name, "").strip():
            return editor
    for editor in _EDITORS:
        if shutil.which(editor):
            return editor
    raise UnsupportedError(
        "no editor is known", next_step="name yours: export EDITOR=nano, and install it"
    )


def _read(remote: Remote, path: str, problems: list[str]) -> bytes:
    incoming = remote.read(path)
    try:
        content = bytearray()
        for piece in incoming.pieces():
            content += piece
            if len(content) > _MOST:
                raise ResourceError(
                    f"{remote.machine}:{path} is too large to be edited like this",
                    next_step="copy it, edit it and copy it back: vmgr cp",
                )
        if incoming.end() != 0:
            raise MachineError(f"cannot read {remote.machine}:{_first(problems, path)}")
    finally:
        incoming.close()
    return bytes(content)


def _edited(editor: str, copy: Path) -> bytes:
    """What the person has made of it."""
    from vmgr.spawner import run_in_foreground

    # As git does: the variable may hold arguments, and quotes around them.
    status = run_in_foreground(["/bin/sh", "-c", f'{editor} "$@"', editor, copy])
    if not status.ok:
        raise MachineError(f"the editor ({editor}) {status}, so nothing was written")
    try:
        return copy.read_bytes()
    except OSError as error:
        raise MachineError(f"what was edited cannot be read: {error.strerror}") from error


def _write(remote: Remote, path: str, copy: Path, mark: str, problems: list[str]) -> None:
    place = f"{remote.machine}:{path}"
    keep = f"yours is kept in {copy}"
    try:
        code = remote.write(path, [copy.read_bytes()], expect=mark)
    except BaseException:
        note(f"vmgr: {keep}.")
        raise
    if code == 0:
        return
    if remote.stat(path).mark != mark:
        raise ConflictError(
            f"{place} has been changed by somebody else meanwhile; {keep}",
            next_step=f"bring both together, then: vmgr cp {copy} {place}",
        )
    raise MachineError(f"{remote.machine}:{_first(problems, path)}; {keep}")


def _first(problems: list[str], path: str) -> str:
    return problems[0] if problems else f"{path}: its agent does not say why"
