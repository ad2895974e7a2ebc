"""What is seen of a process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmgr.audit import proc

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_what_is_open_only_for_the_moment_of_reading_it_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = (tmp_path / "kept").open("w")
    read = (tmp_path / "read").open("w")
    assert {kept.fileno(), read.fileno()} <= proc.look(os.getpid()).fds.keys()
    maps = proc._guest_memory

    def reading_ends(place: Path) -> object:
        read.close()
        return maps(place)

    monkeypatch.setattr(proc, "_guest_memory", reading_ends)
    seen = proc.look(os.getpid()).fds
    assert seen[kept.fileno()] == str(tmp_path / "kept")
    assert str(tmp_path / "read") not in seen.values()
    kept.close()
