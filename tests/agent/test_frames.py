from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.agent.frames import (
    HEADER_SIZE,
    Frame,
    FrameBuffer,
    FrameType,
    ProtocolViolation,
    encode_credit,
    encode_frame,
    encode_header,
)


def take_all(buffer: FrameBuffer) -> list[Frame]:
    return list(iter(buffer.next, None))


def header(
    length: int = 0, kind: int = 5, flow: int = 1, reserved: int = 0, channel: int = 1
) -> bytes:
    return struct.pack("<IBBHI", length, kind, flow, reserved, channel)


def test_bytes_of_a_frame_are_as_the_page_says() -> None:
    frame = encode_frame(FrameType.DATA, b"hi", channel=0x01020304, flow=2)
    assert frame == b"\x02\0\0\0" + b"\x05" + b"\x02" + b"\0\0" + b"\x04\x03\x02\x01" + b"hi"
    assert (
        encode_header(FrameType.DATA, channel=0x01020304, length=2, flow=2) == frame[:HEADER_SIZE]
    )


def test_credit_is_two_absolute_offsets() -> None:
    buffer = FrameBuffer()
    buffer.feed(encode_credit(7, 1, 2**40, 2**40 + 5))
    [frame] = take_all(buffer)
    assert frame.credit == (2**40, 2**40 + 5)
    assert (frame.type, frame.flow, frame.channel) == (FrameType.CREDIT, 1, 7)


_frames = st.one_of(
    st.builds(
        lambda channel, flow, data: Frame(FrameType.DATA, flow, channel, data),
        st.integers(1, 2**32 - 1), st.integers(0, 2), st.binary(max_size=300),
    ),
    st.builds(lambda data: Frame(FrameType.EVENT, 0, 0, data), st.binary(max_size=300)),
    st.builds(lambda channel: Frame(FrameType.CLOSE, 0, channel, b""), st.integers(1, 99)),
)  # fmt: skip


@given(st.lists(_frames, max_size=8), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    frames: list[Frame], data: st.DataObject
) -> None:
    stream = b"".join(
        encode_frame(f.type, f.payload, channel=f.channel, flow=f.flow) for f in frames
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    buffer = FrameBuffer()
    seen: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        buffer.feed(stream[start:end])
        seen += take_all(buffer)
    assert seen == frames
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (header(length=65_537), "a frame of 65537 bytes, above 65536"),
        (header(length=32_769), "DATA of 32769 bytes"),
        (header(kind=0), "a frame of the unknown type 0"),
        (header(kind=14), "a frame of the unknown type 14"),
        (header(reserved=1), "a frame whose reserved bytes are not zero"),
        (header(flow=3), "DATA on flow 3"),
        (header(kind=3, flow=1), "OPENED on flow 1"),
        (header(channel=0), "DATA on channel 0"),
        (header(kind=11, flow=0, channel=1), "EVENT on channel 1"),
        (header(kind=6, length=1), "EOF of 1 bytes"),
        (header(kind=7, length=15), "CREDIT of 15 bytes"),
        (header(kind=7, length=17), "CREDIT of 17 bytes"),
        (header(kind=13, flow=0, channel=0, length=65), "PONG of 65 bytes"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused_before_its_payload_comes(
    bad: bytes, reason: str
) -> None:
    buffer = FrameBuffer()
    buffer.feed(bad)
    with pytest.raises(ProtocolViolation) as caught:
        buffer.next()
    assert caught.value.reason == reason


def test_a_header_that_is_cut_short_waits() -> None:
    buffer = FrameBuffer()
    buffer.feed(header(length=65_537)[:-1])
    assert buffer.next() is None


@given(
    st.binary(max_size=200), st.binary(min_size=16, max_size=16), st.binary(max_size=50), st.data()
)
def test_discard_through_finds_the_marker_across_cuts(
    before: bytes, marker: bytes, after: bytes, data: st.DataObject
) -> None:
    stream = before + marker + after
    at = stream.index(marker)
    cut = data.draw(st.integers(0, len(stream)))
    buffer = FrameBuffer()
    buffer.feed(stream[:cut])
    dropped = cut
    found = buffer.discard_through(marker)
    if found is None:
        dropped = cut - len(buffer)
        assert len(buffer) < len(marker)
        buffer.feed(stream[cut:])
        found = buffer.discard_through(marker)
        assert found is not None
        assert dropped + found == at
        assert len(buffer) == len(stream) - at - len(marker)
    else:
        assert found == at
        assert len(buffer) == cut - at - len(marker)
