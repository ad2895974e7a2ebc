"""Making an archive of files, and taking one apart; the work is done by other processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr._version import __version__
from vmgr.archive.confined import porter_command, zstd_command
from vmgr.archive.manifest import MANIFEST, Manifest, Member, read_manifest
from vmgr.archive.porter import Measured
from vmgr.artifact.faults import failed, no_space
from vmgr.artifact.strangers import open_regular
from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import build_environment, missing_tools, require
from vmgr.errors import UsageError, VmgrError
from vmgr.spawner import run, spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from vmgr.artifact import Progress

__all__ = ["digests", "pack", "unpack"]

_CHECKPOINT: Final = 1_000  # of tar's records, 10 KiB each
_RECORD: Final = 10_240
_SAID: Final = re.compile(r"tar: (\d+)")
_PROGRESS: Final = re.compile(r"progress (\d+) (\d+)")
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_MEASURING: Final = 0.3  # this part of the time of an export


async def digests(paths: list[Path], progress: Callable[[float], None]) -> list[Measured]:
    """Size and digest of files, with holes or without.

    Raises:
        VmgrError: one of them cannot be read.
    """
    lines = await _porter(
        ["digest", *(os.fspath(p) for p in paths)], progress, None, read_only=paths
    )
    if lines[-1:] != ["done"]:
        if not lines or not lines[-1].startswith("failed "):
            raise VmgrError(
                "could not read the snapshot: the program that does has ended",
                next_step="try again, when less runs on this computer",
            )
        number = int(lines[-1].split()[1])
        raise failed(OSError(number, os.strerror(number)), "read the snapshot", paths[0].parent)
    return [msgspec.json.decode(line, type=Measured) for line in lines[:-1]]


async def pack(
    files: Mapping[str, Path],
    base: Path,
    target: int,
    *,
    work: Path,
    executor: Executor,
    progress: Progress,
) -> Manifest:
    """Write an archive of `files` to the fd `target`; compressed where the host has zstd.

    Args:
        files: by the names that they are to have in it; they do not change meanwhile.
        base: what the disk stands on, see `Manifest.base_digest`.
        work: an empty directory.

    Raises:
        UnsupportedError: tar is missing.
        ProcessFailedError, OSError: it could not be written.
        VmgrError: a file cannot be read.
    """
    require("tar")
    paths = list(dict.fromkeys([*files.values(), base]))  # the base is one of them, or is not
    found = await digests(paths, lambda part: progress("Checking", part * _MEASURING))
    measured = dict(zip(paths, found, strict=True))
    manifest = Manifest(
        made_by=f"vmgr {__version__}",
        base_digest=measured[base].digest,
        members=[
            Member(
                name=name,
                size=measured[path].size,
                data=measured[path].data,
                digest=measured[path].digest,
            )
            for name, path in files.items()
        ],
    )

    def lay_out() -> None:
        (work / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        for name, path in files.items():
            (work / name).symlink_to(path)

    await in_thread(executor, lay_out)

    def on_line(line: str) -> None:
        if match := _SAID.match(line):
            part = min(1.0, int(match[1]) * _RECORD / max(manifest.data, 1))
            progress("Writing", _MEASURING + part * (1 - _MEASURING))

    compress = [] if missing_tools("zstd") else ["--use-compress-program=zstd -q -3"]
    await run(
        [
            "tar", "--create", "--file=-", f"--directory={work}", "--dereference",
            "--format=pax", "--pax-option=delete=atime,delete=ctime",
            "--sparse", "--sparse-version=1.0", "--hole-detection=seek",
            "--owner=0", "--group=0", "--numeric-owner", "--mode=0600", *compress,
            f"--checkpoint={_CHECKPOINT}", "--checkpoint-action=echo=%u",
            "--", MANIFEST, *files,
        ],
        env=build_environment(), stdout=target, on_line=on_line,
    )  # fmt: skip
    return manifest


async def unpack(path: Path, stage: Path, executor: Executor, progress: Progress) -> Manifest:
    """Take an archive's members out into the empty directory `stage`, each checked.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is no archive, or damaged.
        ResourceError: no space left.
        UnsupportedError: it is compressed and zstd is missing.
        VmgrError: it failed otherwise.
    """
    opened: list[int] = []
    try:
        # Not its result: a cancellation would take that away.
        await in_thread(executor, lambda: opened.append(open_regular(path)))
        async with _plain(opened[0]) as stream:
            said = await _porter(
                ["unpack", os.fspath(stage)],
                lambda part: progress(f"Reading {path.name}", part),
                stream,
                writable=[stage],
            )
    finally:
        for fd in opened:
            os.close(fd)
    kind, _, rest = (said[-1] if said else "").partition(" ")
    match kind:
        case "done":
            text = await in_thread(executor, (stage / MANIFEST).read_bytes)
            return read_manifest(text)
        case "archive":
            raise UsageError(f"{path} {rest}")
        case "space":
            raise no_space(stage.parent, int(rest))
        case "failed":
            error = OSError(int(rest), os.strerror(int(rest)))
            raise failed(error, f"read {path}", stage.parent)
    raise VmgrError(f"could not read {path}: the program that does has ended")


async def _porter(
    arguments: list[str],
    progress: Callable[[float], None],
    stdin: int | None,
    *,
    read_only: Sequence[Path] = (),
    writable: Sequence[Path] = (),
) -> list[str]:
    """What the porter said, line by line."""

    def on_line(line: str) -> None:
        if match := _PROGRESS.fullmatch(line):
            progress(int(match[1]) / max(int(match[2]), 1))

    command = await porter_command(arguments, read_only=read_only, writable=writable)
    done = await run(command.argv, env=command.env, stdin=stdin, on_line=on_line, check=False)
    return done.stdout.decode(errors="replace").splitlines()


@contextlib.asynccontextmanager
async def _plain(file: int) -> AsyncIterator[int]:
    """An fd from which what is in `file` comes uncompressed."""
    if await asyncio.to_thread(os.pread, file, len(_ZSTD), 0) != _ZSTD:
        yield file
        return
    require("zstd")
    command = await zstd_command(["--decompress", "--stdout", "--quiet", "--memory=512MB"])
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            process = await spawn(
                command.argv, env=command.env, stdin=file, stdout=write, parent_death="kill"
            )
        finally:
            os.close(write)
        try:
            yield read
        finally:
            # It has ended by itself when all was read; a cut-off stream shows as a cut-off tar.
            process.kill()
            await process.wait()
    finally:
        os.close(read)
