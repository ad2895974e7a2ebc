"""Secrets: kept outside of machines, given to single commands in them.

A value is in a store, in the helper while it is being passed on, and in the command that was given
it. It is in no row, no log, no event, no label and no command line.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from vmgr.api.models import SecretInfo
from vmgr.desktop.bus import addresses_of
from vmgr.errors import NotFoundError, StateError, UnsupportedError, UsageError
from vmgr.secret import MAX_SECRET, FileStore, Keyring, NoKeyringError, check_secret_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from vmgr.api.models import ExecSpec, SecretUse
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["Given", "Secrets"]

P = ParamSpec("P")
R = TypeVar("R")

_MOST: Final = 40 * 1024  # bytes that one command is given
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PLACE: Final = "/run/secrets/"

Given = tuple[dict[str, bytes], list[tuple[bytes, bytes]]]
"""Variables of the environment, and files."""


class Secrets:
    """The person's."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._files = FileStore(helper.paths.secrets)
        self._keyring = Keyring(lambda: addresses_of(os.environ))

    async def list(self) -> list[SecretInfo]:
        """What there is, and where it is kept; no values."""
        in_keyring = await self._from_keyring(self._keyring.names(), [])
        in_files = await self._in_files(self._files.names)
        return [
            *(SecretInfo(name=name, store="keyring") for name in in_keyring),
            *(SecretInfo(name=name, store="file") for name in in_files if name not in in_keyring),
        ]

    async def set(self, name: str, value: str) -> SecretInfo:
        """Keep a secret, in place of one of that name.

        Raises:
            UsageError: the name is none, or the secret too large or empty.
            StateError: it cannot be kept.
        """
        check_secret_name(name)
        content = value.encode()
        if not content or len(content) > MAX_SECRET:
            raise UsageError(f"a secret has 1 to {MAX_SECRET} bytes")
        if await self._from_keyring(self._kept(name, content), without=False):
            await self._in_files(self._files.remove, name)
            return SecretInfo(name=name, store="keyring")
        await self._in_files(self._files.set, name, content)
        return SecretInfo(name=name, store="file")

    async def remove(self, name: str) -> SecretInfo:
        """Forget a secret.

        Raises:
            NotFoundError: there is none of that name.
        """
        check_secret_name(name)
        kept = await self._from_keyring(self._keyring.remove(name), without=False)
        filed = await self._in_files(self._files.remove, name)
        if not kept and not filed:
            raise _missing(name)
        return SecretInfo(name=name, store="keyring" if kept else "file")

    async def given(self, machine: Machine, spec: ExecSpec) -> Given:
        """What a command is to be given.

        Raises:
            NotFoundError: there is no such secret.
            UsageError: it cannot be given in that way.
            UnsupportedError: the machine's agent is of an older vmgr.
        """
        variables: dict[str, bytes] = {}
        files: dict[bytes, bytes] = {}
        for use in spec.secrets:
            variable, file = _ways(use)
            content = await self._get(use.name)
            if file is not None:
                files[file] = content
                continue
            if b"\0" in content:
                raise UsageError(
                    f"secret {use.name} cannot be in the environment: it has a NUL byte",
                    next_step=f"give it as a file: --secret {use.name}:{use.name}",
                )
            variables[variable] = content
        if sum(map(len, (*variables.values(), *files.values()))) > _MOST:
            raise UsageError(f"a command is given at most {_MOST // 1024} KiB of secrets")
        if spec.secrets and "secrets" not in machine.greeting.features:
            raise UnsupportedError(
                f"the agent in machine {machine.name} is of an older vmgr and knows no secrets",
                next_step=f"start it anew with: vmgr restart {machine.name}",
            )
        if spec.secrets:
            machine.secrets_given += 1
        return variables, list(files.items())

    async def _get(self, name: str) -> bytes:
        found = await self._from_keyring(self._keyring.get(name), None)
        if found is None:
            found = await self._in_files(self._files.get, name)
        if found is None:
            raise _missing(name)
        return found

    async def _kept(self, name: str, content: bytes) -> bool:
        await self._keyring.set(name, content)
        return True

    async def _from_keyring(self, asked: Coroutine[Any, Any, R], without: R) -> R:
        """The keyring's answer; `without` where the settings, or this session, have none."""
        with contextlib.closing(asked):
            wanted = str((await self._helper.settings()).get("secrets.store"))
            if wanted == "file":
                return without
            try:
                return await asked
            except NoKeyringError:
                if wanted == "keyring":
                    raise
                return without

    async def _in_files(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._helper.executors.in_files(call, *args, **kwargs)
        except OSError as error:
            raise StateError(f"the secrets' files cannot be used: {error.strerror}") from error


def _ways(use: SecretUse) -> tuple[str, bytes | None]:
    """The variable, or the file below /run/secrets."""
    check_secret_name(use.name)
    if use.env is not None and use.path is not None:
        raise UsageError("a secret is given as a variable or as a file, not both")
    if use.path is not None:
        name = use.path.removeprefix(_PLACE)
        if "/" in name or name in {"", ".", ".."} or len(name) > 64 or "\0" in name:  # noqa: PLR2004
            raise UsageError(
                f"{use.path[:100]!r} cannot be a secret's file",
                next_step=f"files of secrets are below {_PLACE}: name it like {_PLACE}{use.name}",
            )
        return "", name.encode()
    variable = use.env or use.name
    if _VARIABLE.fullmatch(variable) is None:
        raise UsageError(
            f"{variable[:64]!r} cannot be a variable's name",
            next_step=f"say which one: --secret {use.name[:64]}=VARIABLE",
        )
    return variable, None


def _missing(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no secret {name}", next_step=f"make it with: vmgr secret set {name}"
    )
