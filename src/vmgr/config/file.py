"""The settings file, `config.toml`: `machine.cpus` is the key `cpus` of the table `[machine]`.

A file that is no TOML is an error, with the line. A setting whose value is wrong is an error only
for whoever needs that setting, so that the others still work and `config unset` mends it. Keys that
nobody knows are warnings, so that a file may serve two versions of vmgr.

Changes keep comments and order, and become visible by rename. All functions block on files: in
asynchronous code they belong in an executor.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import tempfile
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmgr.api.models import ConfigEntry
from vmgr.config.settings import SETTINGS
from vmgr.errors import NotFoundError, StateError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

    from vmgr.config.settings import Setting, Value
    from vmgr.paths import Paths

__all__ = ["Config"]

_LARGEST: Final = 1 << 20
_LINE: Final = re.compile(r" \(at line (\d+), column (\d+)\)$")
_writing = threading.Lock()

log = logging.getLogger(__name__)


class Config:
    """The settings as the file had them when it was read."""

    def __init__(self, path: Path, found: dict[str, Any], warnings: list[str]) -> None:
        self._path = path
        self._found = found
        self.warnings = warnings
        """Sentences about keys that mean nothing."""

    @classmethod
    def load(cls, paths: Paths) -> Config:
        """Read the file; without one, everything has its default.

        Raises:
            StateError: it cannot be read or is no TOML.
        """
        path = paths.config_file
        found = dict(_flatten(_read(path)))
        warnings = [_unknown(path, key) for key in found if key not in SETTINGS]
        for warning in warnings:
            log.warning("%s", warning)
        return cls(path, found, warnings)

    @classmethod
    def mark(cls, paths: Paths) -> object:
        """What is another one when the file is, or was written to; the same while it is not."""
        try:
            about = paths.config_file.stat()
        except OSError as error:  # `load` says what is wrong, if that is wrong
            return error.errno
        return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)

    @classmethod
    def defaults(cls, paths: Paths) -> Config:
        """All defaults, for when the file cannot be read."""
        return cls(paths.config_file, {}, [])

    def get(self, key: str) -> Value:
        """The value in use: sizes in bytes, durations in seconds.

        Raises:
            NotFoundError: there is no such setting.
            StateError: the file has a value for it that means nothing.
        """
        setting = _setting(key)
        if key not in self._found:
            return setting.default()
        try:
            return setting.kind.check(self._found[key])
        except UsageError as error:
            raise StateError(
                f"the setting {key} in {self._path} is wrong: {error.message}",
                next_step=f"correct the file, or use the default: vmgr config unset {key}",
            ) from error

    def entry(self, key: str) -> ConfigEntry:
        """The setting and its meaning; raises as `get` does."""
        setting = _setting(key)
        return ConfigEntry(
            key=key,
            value=setting.kind.show(self.get(key)),
            default=setting.kind.show(setting.default()),
            is_set=key in self._found,
            description=setting.description,
        )

    def entries(self) -> list[ConfigEntry]:
        """All settings by name; raises as `get` does."""
        return [self.entry(key) for key in SETTINGS]

    def set(self, key: str, text: str) -> ConfigEntry:
        """Change a setting to what `text` says, in the file and here.

        Raises:
            NotFoundError: there is no such setting.
            UsageError: `text` is no value for it.
            StateError: the file cannot be changed.
        """
        setting = _setting(key)
        try:
            value = setting.kind.store(setting.kind.parse(text))
        except UsageError as error:
            raise UsageError(
                f"{key}: {error.message}", next_step=error.next_step, details={"key": key}
            ) from None
        table, _, name = key.partition(".")

        def change(document: MutableMapping[str, Any]) -> None:
            if table not in document:
                import tomlkit  # not at the top: 25 ms that only changes need

                document[table] = tomlkit.table()
            document[table][name] = value

        self._change(key, change)
        self._found[key] = value
        return self.entry(key)

    def unset(self, key: str) -> ConfigEntry:
        """Put a setting back to its default, in the file and here; raises as `set` does."""
        _setting(key)
        table, _, name = key.partition(".")

        def change(document: MutableMapping[str, Any]) -> None:
            with contextlib.suppress(KeyError):
                del document[table][name]
                if not document[table].as_string().strip():
                    del document[table]

        if key in self._found:
            self._change(key, change)
            del self._found[key]
        return self.entry(key)

    def _change(self, key: str, change: Callable[[MutableMapping[str, Any]], None]) -> None:
        import tomlkit

        with _writing:
            # Read anew: somebody may have edited it, and comments are only in the text.
            _read(self._path)
            try:
                text = self._path.read_text(encoding="utf-8")
            except FileNotFoundError:
                text = ""
            document = tomlkit.parse(text)
            try:
                change(document)
            except TypeError:
                table = key.partition(".")[0]
                raise StateError(
                    f"{table} in {self._path} is not a table",
                    next_step=f"remove that line and try again: vmgr config set {key} VALUE",
                ) from None
            _write(self._path, document.as_string())


def _setting(key: str) -> Setting:
    setting = SETTINGS.get(key)
    if setting is None:
        near = difflib.get_close_matches(key, SETTINGS, n=1)
        step = f"did you mean {near[0]}?" if near else "see all of them with: vmgr config ls"
        raise NotFoundError(
            f"there is no setting called {key[:80]!r}", next_step=step, details={"key": key[:80]}
        )
    return setting


def _unknown(path: Path, key: str) -> str:
    near = difflib.get_close_matches(key, SETTINGS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{path} has the unknown setting {key[:80]}{hint}"


def _flatten(tables: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict) and not prefix:
            yield from _flatten(value, f"{name}.")
        else:
            yield prefix + name, value


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StateError(
            f"the settings in {path} cannot be read: {error.strerror}",
            next_step="mend its permissions, or move it away",
        ) from error
    if len(data) > _LARGEST:
        raise StateError(f"{path} is too large to be settings", next_step="move it away")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _broken(path, "not UTF-8", line) from error
    except tomllib.TOMLDecodeError as error:
        where = _LINE.search(str(error))
        what = _LINE.sub("", str(error)).removesuffix(" (at end of document)")
        last = data.count(b"\n") + (not data.endswith(b"\n"))
        raise _broken(path, what, int(where[1]) if where else last) from error


def _broken(path: Path, what: str, line: int) -> StateError:
    return StateError(
        f"the settings in {path} cannot be read: {what[:1].lower()}{what[1:]} in line {line}",
        next_step="correct that line, or move the file away to use the defaults",
        details={"path": str(path), "line": line},
    )


def _write(path: Path, text: str) -> None:
    """Replace the file in one step; where it is a symbolic link, what that names."""
    tomllib.loads(text)  # never leave behind what could not be read again
    try:
        target = path.resolve()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=".config-")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).chmod(target.stat().st_mode & 0o777)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        raise StateError(
            f"the settings in {path} cannot be written: {error.strerror}",
            next_step="see that the directory is writable and the disk is not full",
        ) from error
