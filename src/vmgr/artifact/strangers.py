"""Decoding JSON that a stranger wrote."""

from __future__ import annotations

from typing import TypeVar

import msgspec

__all__ = ["decode_json"]

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
