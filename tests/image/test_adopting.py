"""An image from a stranger is named by its bytes, and passes for no other."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.artifact.sparse import digest_sparse
from vmgr.errors import UnsupportedError, UsageError
from vmgr.image import ImageFiles, adopted_metadata, base_of

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
def arrived(tmp_path: Path) -> Path:
    """What came: a file system, and a description that claims to be a known image's."""
    files = tmp_path / "arrived"
    files.mkdir()
    write_description(files)
    (files / "root.ext4").write_bytes(b"hostile")
    os.truncate(files / "root.ext4", SIZE)
    return files


def write_description(files: Path, **changed: Any) -> None:
    told = {
        "version": 2, "source": "recipe:debian", "created_at": 1.0, "init": "/sbin/init",
        "default_user": "root", "env": {"A": "b"}, "entrypoint": [],
        "architecture": os.uname().machine, "content_digest": f"sha256:{1:064x}",
        "disk_bytes": 64 << 30, "minimum_disk_bytes": MIB, **changed,
    }  # fmt: skip
    (files / "image.json").write_text(json.dumps(told))


async def test_it_has_a_name_of_its_own(images: ImageFiles, arrived: Path) -> None:
    digest = digest_sparse(arrived / "root.ext4")
    metadata = adopted_metadata(arrived, digest, SIZE, "snapshot:file")
    image = await images.adopt(arrived, metadata)
    claimed = json.loads((arrived / "image.json").read_text())["content_digest"]
    written = json.loads((image.directory / "image.json").read_text())
    assert written["content_digest"] == f"root.ext4:{digest}" != claimed
    # Its recipe's name is given to images of recipes that have lost theirs.
    assert image.source == "snapshot:file"
    assert (image.init, image.env, image.disk_bytes) == ("/sbin/init", {"A": "b"}, SIZE)
    assert base_of(image, SIZE) == image.disk
    assert base_of(image, SIZE - 5) == image.disk
    assert base_of(image, 64 << 30) != image.disk
    assert [i.digest for i in await images.list()] == [image.digest]
    assert image.disk.stat().st_mode & 0o777 == 0o400
    # The same once more is the same one.
    (arrived / "root.ext4").write_bytes(b"hostile")
    os.truncate(arrived / "root.ext4", SIZE)
    assert (await images.adopt(arrived, metadata)).digest == image.digest
    # Other bytes with the same description are another one.
    other = adopted_metadata(arrived, f"sha256:{2:064x}", SIZE, "snapshot:file")
    assert other.digest() != metadata.digest()


async def test_another_size_is_refused(images: ImageFiles, arrived: Path) -> None:
    metadata = adopted_metadata(arrived, f"sha256:{2:064x}", 2 * SIZE, "snapshot:file")
    with pytest.raises(UsageError, match="of another size"):
        await images.adopt(arrived, metadata)
    assert await images.list() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 9}, "of another version"),
        ({"architecture": "vax"}, "for 'vax', but this host runs"),
        ({"init": "/sbin/init foo=bar"}, "init is not a path"),
        ({"init": "sbin/init"}, "init is not a path"),
        ({"default_user": "a b"}, "is not a user's name"),
        ({"env": {"A=": "b"}}, "its environment is not one"),
        ({"env": {"A": "b\0"}}, "its environment is not one"),
        ({"entrypoint": ["a\0"]}, "is not a command"),
        ({"minimum_disk_bytes": 0}, "description is damaged"),
        ({"minimum_disk_bytes": SIZE + 1}, "description is damaged"),
        ({"env": 3}, "description is damaged"),
    ],
)
def test_descriptions_that_are_refused(arrived: Path, changed: Any, message: str) -> None:
    write_description(arrived, **changed)
    with pytest.raises((UsageError, UnsupportedError), match=message):
        adopted_metadata(arrived, f"sha256:{2:064x}", SIZE, "snapshot:file")
