"""Building a root file system with mmdebstrap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.artifact.apt import debian_architecture, host_codename
from vmgr.artifact.faults import failed
from vmgr.artifact.privilege import Privilege, PrivilegeKind
from vmgr.artifact.tools import build_environment, require
from vmgr.errors import VmgrError
from vmgr.spawner import ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmgr.artifact import Progress
    from vmgr.artifact.sources import Source
    from vmgr.image.recipes import Recipe

__all__ = ["SPACE_NEEDED", "StepReader", "bootstrap"]

SPACE_NEEDED: Final = 1 << 30
"""Bytes that a build takes at its peak, roughly: the tree, the tar and the image at once."""
_LEFT_OUT: Final = ("doc", "info", "locale", "man")
_DEADLINE: Final = 3_600.0
_HOOKS: Final = Path("/usr/share/mmdebstrap/hooks/merged-usr")

# What mmdebstrap (1.3) says, what it means to people, and how far the whole is by then.
_STEPS: Final = (
    ("I: running apt-get update", "Fetching package lists", 0.02),
    ("I: downloading packages with apt", "Downloading the base packages", 0.12),
    ("I: extracting archives", "Unpacking the base packages", 0.20),
    ("I: installing essential packages", "Setting up the base packages", 0.30),
    ("I: installing remaining packages", "Installing the other packages", 0.45),
    ("I: cleaning package lists", "Cleaning up", 0.88),
    ("I: creating tarball", "Packing the root file system", 0.90),
)


@dataclass
class StepReader:
    """Reads mmdebstrap's messages and tells people."""

    progress: Progress
    scale: float = 1.0
    """The share of the whole work that mmdebstrap is."""
    fraction: float = 0.0

    def __call__(self, line: str) -> None:
        """Take one line of standard error."""
        for beginning, message, fraction in _STEPS:
            if line.startswith(beginning):
                self.fraction = fraction * self.scale
                self.progress(message, self.fraction)
                return


async def bootstrap(
    recipe: Recipe,
    sources: Sequence[Source],
    options: Sequence[str],
    *,
    target: Path,
    work: Path,
    privilege: Privilege,
    progress: Progress,
) -> None:
    """Make the tar file `target` of a root file system.

    Args:
        recipe: which packages.
        sources: where to take them from.
        options: settings of apt for fetching, lines of apt.conf(5).
        target: the new file.
        work: an existing private directory for files on their way.
        privilege: what to build with.
        progress: told each step.

    Raises:
        ResourceError: no space left.
        VmgrError: the packages could not be fetched or installed.
    """
    require("mmdebstrap", "dpkg-deb", "tar")
    kind = privilege.kind
    listing = work / "build.sources"
    listing.write_text("\n".join(source.deb822() for source in sources))
    argv: list[str | Path] = [
        "mmdebstrap",
        # Within our own user namespace we are root already; its `unshare` mode would use ids that
        # cannot enter the person's private directories.
        f"--mode={'fakechroot' if kind is PrivilegeKind.FAKEROOT else 'root'}",
        "--variant=minbase",
        "--format=tar",
        f"--architectures={debian_architecture()}",
        f"--include={','.join(recipe.packages)}",
        # Manuals and translations are most of what a small system weighs; packages that people
        # install later bring theirs (the setting is not kept in the image).
        *(
            f"--dpkgopt=path-exclude=/usr/share/{what}/*"
            for what in ("man", "doc", "locale", "info")
        ),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={line.removesuffix(';')}" for line in options),
        *([f"--hook-dir={_HOOKS}"] if _HOOKS.is_dir() else []),
        host_codename(),
        target,
        listing,
    ]
    try:
        await run(
            privilege.isolate(argv),  # its fakechroot mode starts fakeroot by itself
            env=build_environment(TMPDIR=str(work)), cwd=work, umask=0o022,
            deadline=_DEADLINE, on_line=StepReader(progress, 0.9),
        )  # fmt: skip
    except ProcessFailedError as error:
        raise failed(error, "build the image", work, SPACE_NEEDED) from error
    except TimeoutError:
        raise VmgrError(
            f"building the image took more than {_DEADLINE / 60:.0f} minutes",
            next_step="check the network and the mirror that apt uses, then try again",
        ) from None
