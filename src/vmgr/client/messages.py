"""What both twins make of the messages of streams that are not jobs."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from vmgr.api import models as m
from vmgr.api import streams as s
from vmgr.client.core import error_of
from vmgr.errors import HelperUnavailableError

__all__ = ["event_of", "interrupted", "log_data", "silent", "work_message"]

T = TypeVar("T")


def log_data(message: str | bytes) -> bytes:
    """The data of a message on a log stream."""
    if isinstance(message, bytes):
        return message[1:]
    raise _unexpected(message)


def event_of(message: str | bytes) -> m.Event:
    """The event in a message on an event stream."""
    try:
        return msgspec.json.decode(message, type=m.Event)
    except msgspec.MsgspecError:
        raise _unexpected(message) from None


def work_message(message: str | bytes, kind: type[T]) -> s.Progress | T:
    """What a message on an image stream says: how far it is, or the image."""
    try:
        decoded = s.decode_from_helper(message)
        if isinstance(decoded, s.Progress):
            return decoded
        if isinstance(decoded, s.Done):
            return msgspec.convert(decoded.result, kind)
    except msgspec.MsgspecError:
        pass
    raise _unexpected(message)


def silent(timeout: float | None) -> HelperUnavailableError:
    """The error for a helper that says nothing."""
    return HelperUnavailableError(
        f"the helper did not answer within {timeout:g} s", next_step='see "vmgr helper logs"'
    )


def interrupted() -> HelperUnavailableError:
    """The error for a helper that ended amid its work."""
    return HelperUnavailableError(
        "the helper ended before the work was done",
        next_step='try again, and see "vmgr helper logs" if it happens again',
    )


def _unexpected(message: str | bytes) -> Exception:
    try:
        decoded = s.decode_from_helper(message)
    except msgspec.MsgspecError:
        decoded = None
    if isinstance(decoded, s.Failed):
        return error_of(decoded.error)
    return HelperUnavailableError(
        "a message of the helper is not understood",
        next_step='run "vmgr helper restart", so that both are of one version',
    )
