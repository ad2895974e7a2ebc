"""Secrets, in requests and answers."""

from __future__ import annotations

from typing import Literal

from vmgr.api.base import Model

__all__ = ["SecretInfo", "SecretUse", "SetSecret"]


class SecretUse(Model, frozen=True, kw_only=True):
    """A secret that a command is given: as a variable (by its own name), or as a file."""

    name: str
    env: str | None = None
    path: str | None = None
    """Below /run/secrets."""


class SecretInfo(Model, frozen=True, kw_only=True):
    """A secret that is kept, without its value."""

    name: str
    store: Literal["keyring", "file"]


class SetSecret(Model, frozen=True, kw_only=True):
    """A secret's value."""

    value: str
