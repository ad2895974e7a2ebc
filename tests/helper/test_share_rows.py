"""Which ports the shares of a machine get."""

from __future__ import annotations

import pytest

from vmgr.api.shares import Share
from vmgr.errors import ConflictError, ResourceError
from vmgr.helper.shares import more_rows, share_rows
from vmgr.vmm import SHARE_PORTS


def test_a_share_is_at_its_own_path_where_none_is_named() -> None:
    (row,) = share_rows([Share(host="/h", read_only=True)])
    assert (row.host, row.guest, row.slot, row.read_only) == ("/h", "/h", 0, True)


def test_further_ones_get_ports_that_are_free() -> None:
    rows = share_rows([Share(host=path) for path in ("/a", "/b", "/c")])
    rows = more_rows([rows[0], rows[2]], [Share(host="/d"), Share(host="/e")])
    assert [(row.host, row.slot) for row in rows] == [("/a", 0), ("/c", 2), ("/d", 1), ("/e", 3)]
    with pytest.raises(ConflictError):
        more_rows(rows, [Share(host="/x", guest="/a")])
    with pytest.raises(ResourceError):
        more_rows(rows, [Share(host=f"/{n}") for n in range(SHARE_PORTS)])
