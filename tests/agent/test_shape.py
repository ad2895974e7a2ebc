from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.agent.frames import ProtocolViolation
from vmgr.agent.shape import MAX_DEPTH, MAX_ITEMS, check_shape


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


_leaf = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=300) | st.binary(max_size=300)
)  # fmt: skip
_values = st.recursive(
    _leaf,
    lambda inner: (
        st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=5), inner, max_size=20)
    ),
    max_leaves=60,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list) and value:
        return 1 + max(depth_of(v) for v in value)
    return 0


@given(_values)
def test_what_a_library_encodes_passes_exactly_up_to_the_depth(value: Any) -> None:
    payload = msgspec.msgpack.encode(value)
    if depth_of(value) <= MAX_DEPTH:
        check_shape(payload)
    else:
        with pytest.raises(ProtocolViolation, match="nested"):
            check_shape(payload)


@given(st.integers(0, 127), st.binary(max_size=40))
def test_extension_types_are_stepped_over(code: int, data: bytes) -> None:
    check_shape(msgspec.msgpack.encode([msgspec.msgpack.Ext(code, data), 1]))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 255, 256, 65_000])
def test_lengths_of_every_width(length: int) -> None:
    check_shape(msgspec.msgpack.encode(["x" * (length // 2), b"y" * (length // 2)]))


def test_depth_at_and_beyond_the_limit() -> None:
    check_shape(msgspec.msgpack.encode(nested(MAX_DEPTH)))
    with pytest.raises(ProtocolViolation, match="nested more than 8 deep"):
        check_shape(msgspec.msgpack.encode(nested(MAX_DEPTH + 1)))


def test_number_of_values_at_and_beyond_the_limit() -> None:
    check_shape(msgspec.msgpack.encode([0] * (MAX_ITEMS - 1)))
    with pytest.raises(ProtocolViolation, match="more than 16384 values"):
        check_shape(msgspec.msgpack.encode([0] * MAX_ITEMS))


def test_a_list_that_claims_billions_costs_nothing() -> None:
    with pytest.raises(ProtocolViolation, match="cut short"):
        check_shape(b"\xdd\xff\xff\xff\xff\x00")


def test_too_many_bytes() -> None:
    with pytest.raises(ProtocolViolation, match="65537 bytes"):
        check_shape(b"\x00" * 65_537)


@given(st.binary(max_size=400))
def test_any_bytes_pass_or_are_a_violation(payload: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        check_shape(payload)
