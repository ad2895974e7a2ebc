import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.errors import UsageError
from vmgr.machine.sizes import format_size, parse_size

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("2G", 2 * GIB),
        ("2g", 2 * GIB),
        ("64GiB", 64 * GIB),
        ("64GB", 64 * GIB),
        ("1.5G", 3 * GIB // 2),
        ("0.5K", 512),
        ("3 T", 3 * TIB),
        (" 7 ", 7),
        ("10B", 10),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_reads(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1G", "+1", "1X", "1GG", "1e9", "0x10", "1,5G", "nan", "inf", "1 2", "٣G", "1_0"],
)
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert caught.value.message == f"{text!r} is not a size"
    assert caught.value.next_step == "write it like 512M, 2G or 64GiB"


def test_refuses_a_part_of_a_byte() -> None:
    with pytest.raises(UsageError, match=r"'0\.3K' is not a whole number of bytes"):
        parse_size("0.3K")


@pytest.mark.parametrize("text", ["8192P", "9223372036854775808"])
def test_refuses_more_than_a_file_can_hold(text: str) -> None:
    with pytest.raises(UsageError, match="is too large a size"):
        parse_size(text)


def test_a_huge_number_is_refused_without_computing_it() -> None:
    with pytest.raises(UsageError):
        parse_size("9" * 10_000_000 + "P")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (512 * MIB, "512 MiB"),
        (64 * GIB, "64 GiB"),
        (GIB - 1, "1 GiB"),
        (2**63 - 1, "8192 PiB"),
    ],
)
def test_prints(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**62))
def test_what_is_printed_is_read_back_nearly(size: int) -> None:
    printed = format_size(size)
    amount, unit = printed.split()
    try:
        back = parse_size(amount + unit)
    except UsageError:  # 0.1 KiB is no whole number of bytes
        back = round(float(amount) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit))
    assert abs(back - size) <= max(1, size * 0.05)
