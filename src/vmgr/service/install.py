"""The files of an installation: units, the helper's environment, and those of its identity."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmgr.errors import StateError
from vmgr.identity.files import data_home, identity_files
from vmgr.service.environment import lasting_environment
from vmgr.service.systemd import unit_directory
from vmgr.service.units import Layout, environment_file, units

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmgr.paths import Paths

__all__ = ["File", "identity", "remove", "service", "write"]

_EVERYBODY = 0o644
_PRIVATE = 0o600  # proxies have passwords

File = tuple[bytes, int]
"""Content and mode."""


def service(paths: Paths, environ: Mapping[str, str]) -> dict[Path, File]:
    """The units and what goes with them."""
    where = unit_directory(environ)
    found: dict[Path, File] = {
        where / name: (text.encode(), _EVERYBODY)
        for name, text in units(Layout.of(paths, environ)).items()
    }
    lasting = environment_file(lasting_environment(environ))
    found[paths.service_environment] = (lasting.encode(errors="surrogateescape"), _PRIVATE)
    return found


def identity(environ: Mapping[str, str]) -> dict[Path, File]:
    """Desktop entry, icon, AppStream data."""
    where = data_home(environ)
    return {where / name: (content, _EVERYBODY) for name, content in identity_files().items()}


def write(files: Mapping[Path, File]) -> list[Path]:
    """Write those that are missing or differ, each in one step; gives their paths.

    Raises:
        StateError: one could not be written.
    """
    written = []
    for path, (content, mode) in files.items():
        try:
            if _has(path, content):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".vmgr-", delete=False) as new:
                try:
                    new.write(content)
                    new.flush()
                    Path(new.name).chmod(mode)
                    Path(new.name).replace(path)
                except BaseException:
                    Path(new.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise StateError(
                f"cannot write {path}: {error.strerror}",
                next_step="see that the directory is yours and the disk is not full",
            ) from error
        written.append(path)
    return written


def remove(files: Iterable[Path]) -> list[Path]:
    """Delete those that are there; gives their paths.

    Raises:
        StateError: one could not be deleted.
    """
    gone = []
    for path in files:
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(f"cannot delete {path}: {error.strerror}") from error
        gone.append(path)
    return gone


def _has(path: Path, content: bytes) -> bool:
    with contextlib.suppress(OSError):
        return path.read_bytes() == content
    return False
