"""Secrets at rest: in the desktop's keyring, or in files that only this user reads."""

from __future__ import annotations

from vmgr.secret.files import FileStore
from vmgr.secret.keyring import Keyring, NoKeyringError
from vmgr.secret.names import MAX_SECRET, check_secret_name

__all__ = ["MAX_SECRET", "FileStore", "Keyring", "NoKeyringError", "check_secret_name"]
