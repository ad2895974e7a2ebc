from __future__ import annotations

import pytest

from vmgr.errors import UsageError
from vmgr.volume import check_path, check_volume_name


@pytest.mark.parametrize("name", ["data", "a", "0.b_c-d", "a" * 63])
def test_names(name: str) -> None:
    assert check_volume_name(name) == name


@pytest.mark.parametrize("name", ["", ".new-1", "..", "a/b", "A", "a:b", "a" * 64, "ä", "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a volume's name"):
        check_volume_name(name)


def test_paths_are_made_plain() -> None:
    assert check_path(None, "data") == "/mnt/data"
    assert check_path("/srv//data/", "data") == "/srv/data"
    assert check_path("//srv/./x", "data") == "/srv/x"
    assert check_path("/device", "data") == "/device"
    assert check_path("/usr/local", "data") == "/usr/local"


@pytest.mark.parametrize(
    "path",
    [
        "srv", "/", "//", "/srv/../..", "/proc", "/sys/x", "/dev/x", "/etc", "/usr/", "/a\nb",
        "/" + 1024 * "a",
    ],
)  # fmt: skip
def test_where_no_volume_can_be(path: str) -> None:
    with pytest.raises(UsageError, match="no volume can be there"):
        check_path(path, "data")
