"""Archives made by hand, most of them hostile."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmgr.archive.manifest import ArchiveError
from vmgr.archive.porter import NoSpaceError, unpack
from vmgr.artifact.sparse import digest_sparse

if TYPE_CHECKING:
    from pathlib import Path

BASE = f"sha256:{0:064x}"


def member(
    name: str, content: bytes, /, **said: Any
) -> tuple[tarfile.TarInfo, bytes, dict[str, Any]]:
    """A member and what the manifest says of it; the digest is not right."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    told = {"name": name, "size": len(content), "data": len(content), "digest": BASE}
    return info, content, {**told, **said}


def archive(
    members: list[tuple[tarfile.TarInfo, bytes, dict[str, Any]]],
    *,
    manifest: dict[str, Any] | None = None,
) -> bytes:
    """A plain archive with a manifest of these members."""
    told = {
        "format": "vmgr-snapshot", "version": 1, "base_digest": BASE,
        "members": [said for *_, said in members], **(manifest or {}),
    }  # fmt: skip
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        text = json.dumps(told).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
        for info, content, _ in members:
            tar.addfile(info, io.BytesIO(content))
    return output.getvalue()


def right(name: str, content: bytes, tmp_path: Path) -> Any:
    """A member whose digest is right."""
    path = tmp_path / "content"
    path.write_bytes(content)
    return member(name, content, digest=digest_sparse(path))


def taken(content: bytes, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    unpack(io.BufferedReader(io.BytesIO(content)), out)  # type: ignore[arg-type]
    return out


def test_a_sound_one(tmp_path: Path) -> None:
    out = taken(archive([right("devices", b"abc", tmp_path)]), tmp_path)
    assert (out / "devices").read_bytes() == b"abc"


def linked(name: str, kind: bytes, target: str) -> Any:
    info, content, said = member(name, b"")
    info.type, info.linkname = kind, target
    return info, content, said


def sparse(realsize: int, numbers: bytes, content: bytes = b"") -> Any:
    """A sparse member with a map of one's own."""
    text = numbers.ljust(512, b"\0")
    info, content, said = member("memory", text + content)
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "memory",
        "GNU.sparse.realsize": str(realsize),
    }  # fmt: skip
    return info, content, {**said, "size": realsize, "data": 0}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (member("../evil", b"x"), "files that a snapshot does not have"),
        (member("/etc/passwd", b"x"), "files that a snapshot does not have"),
        (member("manifest.json", b"x"), "files that a snapshot does not have"),
        (member("devices", b"x"), "its devices does not have the checksum it had"),
        (member("devices", b"x", size=2), "is not what its manifest says"),
        (member("devices", b"x", name="memory"), "is not what its manifest says"),
        (member("devices", b"x", data=2), "an impossible size"),
        (member("devices", b"x", data=-1), "an impossible size"),
        (member("devices", b"x", size=1 << 40, data=0), "an impossible size"),
        (member("devices", b"x", digest="none"), "no digests"),
        (linked("devices", tarfile.SYMTYPE, "/etc/passwd"), "not a regular file"),
        (linked("devices", tarfile.LNKTYPE, "manifest.json"), "not a regular file"),
        (linked("devices", tarfile.DIRTYPE, ""), "not a regular file"),
        (linked("devices", tarfile.CHRTYPE, ""), "not a regular file"),
        (linked("devices", tarfile.FIFOTYPE, ""), "not a regular file"),
        (sparse(4096, b"1\n0\n8\n"), "the map of a sparse file in it is wrong"),
        (sparse(4096, b"1\n4090\n8\n", b"12345678"), "the map of a sparse file in it is wrong"),
        (sparse(4096, b"2\n8\n4\n0\n4\n", b"12345678"), "the map of a sparse file in it is wrong"),
        (sparse(4096, b"-1\n"), "a number in it is none"),
        (sparse(4096, b"99999999\n"), "has too many parts"),
        (sparse(4096, b"9" * 30 + b"\n"), "the map of a sparse file in it is wrong"),
        (sparse(4096, b"400000\n"), "the map of a sparse file in it is wrong"),
    ],
)
def test_what_is_not_a_snapshot(tmp_path: Path, made: Any, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        taken(archive([made]), tmp_path)
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"devices", "memory"}
    assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())


def test_a_sparse_one_made_by_hand(tmp_path: Path) -> None:
    whole = bytes(8) + b"1234" + bytes(84)
    info, content, said = sparse(96, b"1\n8\n4\n", b"1234")
    said["digest"] = right("memory", whole, tmp_path)[2]["digest"]
    out = taken(archive([(info, content, said)]), tmp_path)
    assert (out / "memory").read_bytes() == whole


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"version": 2}, r"was written by a newer vmgr \(format 2, this one knows 1\)"),
        ({"format": "other"}, "is not a snapshot that vmgr exported"),
        ({"members": 3}, "its manifest is not valid"),
        ({"base_digest": "x"}, "no digests"),
    ],
)
def test_manifests(tmp_path: Path, manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        taken(archive([], manifest=manifest), tmp_path)


def test_more_or_less_than_it_says(tmp_path: Path) -> None:
    one = right("devices", b"abc", tmp_path)
    twice = [one, right("memory", b"abc", tmp_path)]
    says_one = {"members": [one[2]]}
    with pytest.raises(ArchiveError, match="there is more in it than its manifest says"):
        taken(archive(twice, manifest=says_one), tmp_path)
    (tmp_path / "out/devices").unlink()
    with pytest.raises(ArchiveError, match="is not what its manifest says"):
        taken(archive([one], manifest={"members": [said for *_, said in twice]}), tmp_path)
    (tmp_path / "out/devices").unlink()
    with pytest.raises(ArchiveError, match="files that a snapshot does not have"):
        taken(archive([one, one]), tmp_path)


def test_a_manifest_that_lies_about_how_much_comes(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError):
        taken(archive([member("root.ext4", b"", size=14 << 40, data=14 << 40)]), tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_or_a_cut_is_an_error_of_the_archive(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("changed")
    content = archive([right("devices", b"abc" * 100, tmp_path)])
    used = content.rstrip(b"\0")
    if data.draw(st.booleans()):
        changed = content[: data.draw(st.integers(0, len(used) - 1))]
    else:
        at = data.draw(st.integers(0, len(used) - 1))
        byte = data.draw(st.integers(0, 255))
        changed = content[:at] + bytes([byte]) + content[at + 1 :]
    try:
        out = taken(changed, tmp_path)
    except ArchiveError:
        return
    # What a change did not touch came out as it was.
    assert (out / "devices").read_bytes() == b"abc" * 100
