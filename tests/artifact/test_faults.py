from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vmgr.artifact.faults import failed, human_size, require_space
from vmgr.errors import ResourceError, VmgrError
from vmgr.spawner import ExitStatus, ProcessFailedError

HERE = Path("/")


def process(output: str) -> ProcessFailedError:
    return ProcessFailedError(["tool"], ExitStatus(code=1), output)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (64 << 30, "64.0 GiB"),
        (2 << 40, "2.0 TiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert human_size(count) == text


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        process("tar: x: Cannot write: No space left on device\ntar: Exiting with failure status"),
        process("E: You don't have enough free space in /x."),
        process("mke2fs: Could not allocate block in ext2 filesystem while populating file system"),
    ],
)
def test_a_full_disk_is_told_with_figures(error: OSError | ProcessFailedError) -> None:
    found = failed(error, "build", HERE, needed=3 << 30)
    assert isinstance(found, ResourceError)
    assert found.message.startswith("no space left in /: ")
    assert found.message.endswith(" free, about 3.0 GiB needed")
    assert found.details["free_bytes"] > 0
    assert found.next_step


def test_an_unreachable_mirror_is_told_as_such() -> None:
    found = failed(
        process("Err:1 x\nE: Failed to fetch http://x  Could not resolve 'x'"), "build", HERE
    )
    assert found.message == "could not build: the host's Debian mirror cannot be reached"
    assert found.next_step == "check the network and the proxy settings of apt, then try again"


def test_other_failures_give_the_telling_line_and_keep_the_output() -> None:
    found = failed(
        process("I: hello\nE: no such suite.\nE: mmdebstrap failed to run\n"), "build", HERE
    )
    assert type(found) is VmgrError
    assert found.message == "could not build: no such suite"
    assert "I: hello" in found.details["output"]


def test_space_is_asked_for_before_the_work() -> None:
    require_space(HERE, 1)
    with pytest.raises(ResourceError, match=r"free, about 1024\.0 TiB needed"):
        require_space(HERE, 1 << 50)
