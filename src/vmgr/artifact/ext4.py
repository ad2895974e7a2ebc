"""Making ext4 file systems in files.

Settled by measurement, see docs/decisions/0002-disks-and-kernel-bundles.md:

- The base file system has the *default* disk size at once (sparse), so nothing has to grow at
  the first boot. Other sizes are made by `resize2fs` of a sparse copy on the host, quickly.
- Inode tables are declared zeroed: a sparse file is. Otherwise the guest's kernel would write
  gigabytes of zeros into each machine's disk in the background (`noinit_itable` in the superblock
  says the same for the groups that a later growth adds).
- The features are listed, not left to the host's mke2fs.conf: every host makes the same file
  system, and the guest's kernel knows all of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from vmgr.artifact.faults import failed, human_size
from vmgr.artifact.sparse import copy_sparse
from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import build_environment, require
from vmgr.errors import StateError, UsageError
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from vmgr.artifact.privilege import Privilege

__all__ = [
    "make_empty",
    "make_root",
    "make_tree_disk",
    "minimum_size",
    "resized_copy",
    "set_capabilities",
]

_BLOCK_SIZE: Final = 4_096
_UUID: Final = "6f4ab1c2-0d3e-4c55-9d2a-766d67720001"  # no two of these meet in one machine
_HASH_SEED: Final = "6f4ab1c2-0d3e-4c55-9d2a-766d67720002"
_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)
_JOURNAL_MIB: Final = 64
_DEADLINE: Final = 1_800.0
_MINIMUM: Final = re.compile(r"minimum size of the filesystem: (\d+)")
_SLACK: Final = 32 << 20
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9._/+@-]+")

# In one shell so that fakeroot, which forgets at its end, sees both.
_FILL: Final = (
    "tar --extract --numeric-owner --same-owner --preserve-permissions --delay-directory-restore"
    ' --directory "$1" && shift && exec mke2fs "$@"'
)


def _environment() -> dict[str, str]:
    # E2FSPROGS_FAKE_TIME (libext2fs) and SOURCE_DATE_EPOCH (newer): the superblock's times.
    return build_environment(
        MKE2FS_CONFIG="/dev/null", E2FSPROGS_FAKE_TIME="1", SOURCE_DATE_EPOCH="1"
    )


def _options(directory: Path, target: Path, features: str, extra: Sequence[str]) -> list[str]:
    extended = f"hash_seed={_HASH_SEED},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    return [
        "-q", "-F", "-t", "ext4", "-O", features, "-b", str(_BLOCK_SIZE), "-I", "256",
        "-m", "0", "-U", _UUID, "-E", f"{extended},assume_storage_prezeroed=1",
        *extra, "-d", str(directory), str(target),
    ]  # fmt: skip


async def make_root(
    tar: int,
    tree: Path,
    target: Path,
    size_bytes: int,
    *,
    privilege: Privilege,
    executor: Executor,
) -> None:
    """Make a root file system from a tar stream.

    Args:
        tar: an fd with the stream; trusted to hold only plain paths (see `vmgr.image.tarball`).
        tree: an empty directory, for the files on their way.
        target: the new file.
        privilege: what to lay the files out with.

    Raises:
        ResourceError: no space left.
        VmgrError: it could not be made.
    """
    require("tar", "mke2fs", "tune2fs")
    await _create(target, size_bytes, executor)
    options = _options(tree, target, _FEATURES, ["-i", "16384", "-J", f"size={_JOURNAL_MIB}"])
    try:
        await run(
            privilege.wrap(["sh", "-ceu", _FILL, "sh", tree, *options]),
            env=_environment(), stdin=tar, umask=0o022, deadline=_DEADLINE,
        )  # fmt: skip
        await run(
            ["tune2fs", "-E", "mount_opts=noinit_itable", target], env=_environment(),
            deadline=_DEADLINE,
        )  # fmt: skip
    except ProcessFailedError as error:
        raise failed(error, "make the file system", target.parent) from error


async def set_capabilities(disk: Path, capabilities: Mapping[str, bytes], work: Path) -> None:
    """Give files their capabilities (xattr `security.capability`) in a file system image.

    Written straight into the image: on the way there, through a user namespace or fakeroot (which
    forgets a file's type when its attribute is set), they would not come out the same.

    Args:
        disk: the image.
        capabilities: the attribute's value by path below the root; odd paths are left without.
        work: an existing private directory.

    Raises:
        VmgrError: it could not be done.
    """
    lines = []
    for number, (path, value) in enumerate(capabilities.items()):
        if _PLAIN_PATH.fullmatch(path):
            (work / f"capability-{number}").write_bytes(value)
            lines.append(f"ea_set -f {work.name}/capability-{number} /{path} security.capability\n")
    if not lines:
        return
    require("debugfs")
    script = work / "capabilities"
    script.write_text("".join(lines))
    done = await run(
        ["debugfs", "-w", "-f", f"{work.name}/capabilities", disk], env=_environment(),
        cwd=work.parent, deadline=_DEADLINE,
    )  # fmt: skip
    # debugfs says its version first, and always exits with 0.
    complaints = done.stderr.decode(errors="replace").splitlines()[1:]
    if complaints:
        raise StateError(f"could not set the capabilities of files: {complaints[0]}")


async def make_tree_disk(
    tree: Path, target: Path, size_bytes: int, privilege: Privilege, executor: Executor
) -> None:
    """Make a file system that is only ever read from the directory `tree`; root owns all in it."""
    require("mke2fs")
    await _create(target, size_bytes, executor)
    features = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,extra_isize"
    try:
        await run(
            privilege.wrap(["mke2fs", *_options(tree, target, features, ["-i", "16384"])]),
            env=_environment(), deadline=_DEADLINE,
        )  # fmt: skip
    except ProcessFailedError as error:
        raise failed(error, "make the file system", target.parent) from error


async def make_empty(target: Path, size_bytes: int, executor: Executor) -> None:
    """Make an empty file system of its own in the new file `target`, to be written to by machines.

    Raises:
        ResourceError: no space left.
        VmgrError: it could not be made.
    """
    require("mke2fs")
    await _create(target, size_bytes, executor)
    # Several of them meet in one machine, so no two are the same.
    extended = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1"
    try:
        await run(
            [
                "mke2fs", "-q", "-F", "-t", "ext4", "-O", _FEATURES, "-b", str(_BLOCK_SIZE),
                "-I", "256", "-m", "0", "-i", "16384", "-U", "random", "-E", extended, target,
            ],
            env=build_environment(MKE2FS_CONFIG="/dev/null"), deadline=_DEADLINE,
        )  # fmt: skip
    except ProcessFailedError as error:
        raise failed(error, "make the file system", target.parent) from error


async def minimum_size(path: Path) -> int:
    """The fewest bytes that the file system in `path` can be shrunk to, with a little slack."""
    require("resize2fs")
    done = await run(["resize2fs", "-P", path], env=_environment(), deadline=_DEADLINE)
    match = _MINIMUM.search(done.stdout.decode(errors="replace"))
    if match is None:
        raise StateError(f"resize2fs does not understand {path}")
    size = int(match[1]) * _BLOCK_SIZE + _SLACK
    return -(-size // (1 << 20)) << 20


async def resized_copy(base: Path, target: Path, size_bytes: int, executor: Executor) -> None:
    """Copy the file system `base` to the new file `target` with another size.

    Raises:
        UsageError: its content does not fit that size.
        ResourceError: no space left.
    """
    require("resize2fs")
    try:
        await in_thread(executor, copy_sparse, base, target)
        await run(
            ["resize2fs", "-f", target, f"{size_bytes // 1024}K"], env=_environment(),
            deadline=_DEADLINE,
        )  # fmt: skip
        await in_thread(executor, _truncate, target, size_bytes)
    except ProcessFailedError as error:
        if "smaller than minimum" in error.output or "Not enough space" in error.output:
            raise UsageError(
                f"the image does not fit a disk of {human_size(size_bytes)}",
                next_step="ask for a larger disk",
            ) from error
        raise failed(error, "resize the file system", target.parent) from error
    except OSError as error:
        raise failed(error, "copy the image", target.parent) from error


async def _create(target: Path, size_bytes: int, executor: Executor) -> None:
    def create() -> None:
        with target.open("xb") as file:
            file.truncate(size_bytes)

    try:
        await in_thread(executor, create)
    except OSError as error:
        raise failed(error, "make the file system", target.parent) from error


def _truncate(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)
