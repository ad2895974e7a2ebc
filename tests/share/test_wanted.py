"""What may be shared, and where."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vmgr.api.shares import Share
from vmgr.errors import ConflictError, NotFoundError, ResourceError, UsageError
from vmgr.share import check_guest, check_host, check_shares

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("relative", "not an absolute path"),
        ("/", "needs its own /"),
        ("/etc", "needs its own /etc"),
        ("/a/../b", "not a plain path"),
        ("/a/", "not a plain path"),
        ("//a", "not a plain path"),
        ("/a\0b", "not one that Linux has"),
        ("/" + "a" * 4_095, "not one that Linux has"),
    ],
)
def test_places_in_a_machine_that_cannot_be(path: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_guest(path)


@pytest.mark.parametrize("path", ["/a", "/mnt/x y,z='\"\n", "/home/é", "/usr/src"])
def test_places_in_a_machine_that_can_be(path: str) -> None:
    check_guest(path)


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    own = tmp_path / "state"
    (own / "deep").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "to-own").symlink_to(own)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, error in (
        (tmp_path / "nowhere", NotFoundError),
        (tmp_path / "loop", NotFoundError),
        (tmp_path / "file", UsageError),
        (own, UsageError),
        (own / "deep", UsageError),
        (tmp_path / "to-own", UsageError),
        ("/", UsageError),
        ("relative", UsageError),
    ):
        with pytest.raises(error):
            check_host(str(path), [own])
    # Within a shared home they are hidden.
    check_host(str(tmp_path), [own])


def test_what_this_user_cannot_read_is_not_shared(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads all")
    tmp_path.chmod(0)
    try:
        with pytest.raises(UsageError, match="cannot be read"):
            check_host(str(tmp_path), [])
    finally:
        tmp_path.chmod(0o700)


def test_shares_of_one_machine() -> None:
    def shares(*places: str) -> list[Share]:
        return [Share(host="/h", guest=place) for place in places]

    check_shares(shares("/a", "/b"), 2)
    with pytest.raises(ConflictError, match="cannot both be at /a"):
        check_shares(shares("/a", "/a"), 2)
    with pytest.raises(ResourceError, match="2 shares at most"):
        check_shares(shares("/a", "/b", "/c"), 2)
