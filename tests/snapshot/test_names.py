"""What snapshots are called."""

from __future__ import annotations

import pytest

from vmgr.errors import UsageError
from vmgr.snapshot import check_tag, made_up_tag, split_reference


@pytest.mark.parametrize("tag", ["a", "1", "before-upgrade", "v1.2_3", "A" * 63])
def test_tags(tag: str) -> None:
    assert check_tag(tag) == tag
    assert split_reference(f"web:{tag}") == ("web", tag)


@pytest.mark.parametrize(
    "tag", ["", "-a", ".a", "a b", "a/b", "../a", "a:b", "A" * 64, "ä", "a\n", "a\0"]
)
def test_what_no_tag_is(tag: str) -> None:
    with pytest.raises(UsageError, match="is not a tag for a snapshot"):
        check_tag(tag)


@pytest.mark.parametrize("reference", ["web", "", "web/one", "Web:one", ":one", "web:", "a b:c"])
def test_what_names_no_snapshot(reference: str) -> None:
    with pytest.raises(UsageError):
        split_reference(reference)


def test_made_up_tags_are_tags_and_differ() -> None:
    taken: set[str] = set()
    for _ in range(3):
        tag = check_tag(made_up_tag(taken, 1_795_564_000.0))
        assert tag not in taken
        taken.add(tag)
