from __future__ import annotations

import time

import pytest

from vmgr.artifact.sources import Source, parse_deb822
from vmgr.image.recipes import RECIPES, AddedFile, AddedLink, additions

SOURCE = Source(
    ("http://mirror.example/debian",), ("bookworm",), ("main",),
    (("Signed-By", "/home/me/key.gpg"), ("Check-Valid-Until", "no"), ("Architectures", "amd64")),
)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_machine_goes_on_with_the_hosts_mirror_and_debians_own_keys(name: str) -> None:
    added = {a.path: a for a in additions(RECIPES[name], [SOURCE])}
    listing = added["etc/apt/sources.list.d/debian.sources"]
    assert isinstance(listing, AddedFile)
    (found,) = parse_deb822(listing.content.decode())
    assert found.uris == SOURCE.uris
    assert found.option("Signed-By") == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert found.option("Check-Valid-Until") == "no"
    assert found.option("Architectures") is None


def test_a_machine_with_systemd_has_an_empty_machine_id_and_needs_no_update() -> None:
    added = {a.path: a for a in additions(RECIPES["debian"], [SOURCE])}
    machine_id, stamp = added["etc/machine-id"], added["etc/.updated"]
    assert isinstance(machine_id, AddedFile)
    assert isinstance(stamp, AddedFile)
    assert machine_id.content == b""
    assert stamp.mtime >= time.time() - 60
    assert isinstance(added["etc/systemd/system/default.target"], AddedLink)
    assert "etc/machine-id" not in {a.path for a in additions(RECIPES["debian-minimal"], [])}
