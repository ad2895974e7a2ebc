from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def paths() -> Iterator[Paths]:
    """A home of its own, short enough for sockets."""
    root = tempfile.mkdtemp(prefix="vmgr-c-", dir="/tmp")
    yield Paths.from_environment({"VMGR_HOME": root})
    shutil.rmtree(Path(root))
