"""Files and JSON that a stranger may have made."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, TypeVar

import msgspec

from vmgr.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["decode_json", "open_regular"]

T = TypeVar("T")


def decode_json(text: bytes, kind: type[T]) -> T:
    """Decode and validate.

    Raises:
        ValueError: it is not JSON, or not of that kind; its text says why.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    # UnicodeDecodeError, for bytes that are not UTF-8, is a ValueError already.


def open_regular(path: Path) -> int:
    """Open a file that a person named for reading; gives its fd.

    Raises:
        NotFoundError: there is none.
        UsageError: it is no regular file, or cannot be opened.
    """
    if "\0" in os.fspath(path):
        raise UsageError("a file's name has no NUL byte in it")
    try:
        # Non-blocking, so that a FIFO does not keep us; it says nothing about regular files.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is not a regular file")
    return fd
