from __future__ import annotations

import io
import tarfile

import pytest

from vmgr.cli.copy.passing import passed_on
from vmgr.errors import AgentError


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def stream(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def passed(data: bytes, *, whole: bool = False) -> tuple[list[tarfile.TarInfo], list[str]]:
    problems: list[str] = []
    made = b"".join(passed_on(io.BytesIO(data).read, whole=whole, on_problem=problems.append))
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        return tar.getmembers(), problems


def test_trees_pass() -> None:
    data = stream(
        (member("app", tarfile.DIRTYPE, mode=0o755), b""),
        (member("app/" + "n" * 200, mode=0o4755, uid=7, mtime=12.5), b"x" * 1_000),
        (member("app/link", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (member("app/hard", tarfile.LNKTYPE, linkname="app/" + "n" * 200), b""),
    )
    found, problems = passed(data)
    assert problems == []
    assert [(m.name, m.type) for m in found] == [
        ("app", tarfile.DIRTYPE), ("app/" + "n" * 200, tarfile.REGTYPE),
        ("app/link", tarfile.SYMTYPE), ("app/hard", tarfile.LNKTYPE),
    ]  # fmt: skip
    # What would be of somebody else there is the copier's own.
    assert (found[1].mode, found[1].uid, found[1].size, found[1].mtime) == (0o755, 0, 1_000, 12.5)
    kept, _ = passed(data, whole=True)
    assert (kept[1].mode, kept[1].uid) == (0o4755, 7)


def test_content_is_what_it_was() -> None:
    data = stream((member("a"), b"a" * 700), (member("b"), b""))
    made = b"".join(passed_on(io.BytesIO(data).read, whole=False, on_problem=print))
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        (a, b) = (tar.extractfile(name) for name in ("a", "b"))
        assert a is not None
        assert b is not None
        assert (a.read(), b.read()) == (b"a" * 700, b"")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "app/../../x"])
def test_what_leads_out_is_left_out(name: str) -> None:
    found, problems = passed(stream((member(name), b"evil"), (member("app"), b"good")))
    assert [m.name for m in found] == ["app"]
    assert problems == [f"{name}: its name leads out of the copy, and it was left out"]


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_left_out(kind: bytes) -> None:
    found, problems = passed(stream((member("app/dev", kind), b"")), whole=True)
    assert found == []
    assert len(problems) == 1


def test_no_tar_stream() -> None:
    with pytest.raises(AgentError, match="is not a tar archive"):
        list(passed_on(io.BytesIO(b"#" * 2_000).read, whole=False, on_problem=print))
