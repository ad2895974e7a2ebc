from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmgr.cli.copy.tarreader import DIRECTORY, FILE, SYMLINK, Member, TarReader
from vmgr.errors import AgentError


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def file(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def read(data: bytes, step: int = 1 << 20) -> list[tuple[Member, bytes]]:
    source = io.BytesIO(data)
    reader = TarReader(lambda count: source.read(min(count, step)))
    return [(member, b"".join(reader.data())) for member in reader.members()]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_formats(form: int, step: int) -> None:
    data = archive(
        file("dir", type=tarfile.DIRTYPE, mode=0o750),
        file("dir/file", b"content" * 200, mode=0o4640, uid=7, gid=8, mtime=1_000_000_000),
        file("dir/link", type=tarfile.SYMTYPE, linkname="file"),
        form=form,
    )
    (directory, _), (entry, content), (link, _) = read(data, step)
    assert (directory.kind, directory.mode) == (DIRECTORY, 0o750)
    assert (entry.name, entry.kind, entry.mode) == (b"dir/file", FILE, 0o4640)
    assert (entry.uid, entry.gid, entry.mtime_ns) == (7, 8, 10**18)
    assert content == b"content" * 200
    assert (link.kind, link.link) == (SYMLINK, b"file")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_links(form: int) -> None:
    name, target = "d/" + "n" * 300, "t" * 400
    data = archive(
        file(name, b"x"), file("l", type=tarfile.SYMTYPE, linkname=target), file("after"),
        form=form,
    )  # fmt: skip
    members = [member for member, _ in read(data)]
    assert [m.name for m in members] == [name.encode(), b"l", b"after"]
    assert members[1].link == target.encode()


def test_nanoseconds_sizes_and_bytes_that_are_no_utf8() -> None:
    data = archive(file(b"\xff\xfe".decode(errors="surrogateescape"), mtime=1.25))
    ((member, _),) = read(data)
    assert member.name == b"\xff\xfe"
    assert member.mtime_ns == 1_250_000_000


def test_content_that_nobody_wanted_is_skipped() -> None:
    data = archive(file("a", b"x" * 5000), file("b", b"y"))
    source = io.BytesIO(data)
    assert [m.name for m in TarReader(source.read).members()] == [b"a", b"b"]


def test_an_archive_that_ends_early() -> None:
    data = archive(file("a", b"x" * 5000))
    for end in (0, 100, 600, 3000):
        with pytest.raises(AgentError, match="ends early"):
            read(data[:end])


def test_a_wrong_checksum() -> None:
    data = bytearray(archive(file("a")))
    data[0] ^= 1
    with pytest.raises(AgentError, match="checksum"):
        read(bytes(data))


def headers(content: bytes, size: int | None = None) -> bytes:
    """A pax header with this content, which claims to be `size` bytes long."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = len(content) if size is None else size
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def test_a_header_that_claims_gigabytes_is_refused_before_it_is_read() -> None:
    with pytest.raises(AgentError, match="too long a header"):
        read(headers(b"", 4 << 30))


def test_headers_without_a_member_are_refused() -> None:
    with pytest.raises(AgentError, match="too long a header"):
        read(headers(b"11 path=aa\n") * 20)


@pytest.mark.parametrize(
    "record",
    [b"99 path=a\n", b"0 path=a\n", b"9999999999999999999999 p=a\n", b"-5 p=a\n", b"10 path=ab",
     b"9 patha\n", b"8 size=\n", b"12 size=-99\n", b"15 mtime=1e300\n", b"11 path=\0a\n"],
)  # fmt: skip
def test_malformed_records(record: bytes) -> None:
    with pytest.raises(AgentError, match="not a tar archive"):
        read(headers(record) + archive(file("a")))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_do_more_than_raise_our_error(data: st.DataObject) -> None:
    valid = bytearray(archive(file("d/" + "n" * 200, b"x" * 700, mtime=1.5), file("b")))
    for _ in range(data.draw(st.integers(1, 6))):
        valid[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    try:
        for member, _ in read(bytes(valid)):
            assert member.size >= 0
    except AgentError:
        pass
