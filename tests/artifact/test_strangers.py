"""Whatever a stranger wrote, the answer is a value or a ValueError."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vmgr.artifact.strangers import decode_json


class Thing(msgspec.Struct):
    text: str = ""
    rest: Any = None


def test_what_is_right() -> None:
    assert decode_json(b'{"text": "a"}', Thing) == Thing("a")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"3", b'{"text": 3}', b'{"text": "\x80"}', b'{"text": "\\ud800"}', b"\xff",
        b'{"rest": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_not(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_json(text, Thing)
