"""The host's apt, with a private state: no root needed, and nothing of the host's is changed.

It reads the host's configuration (proxies, certificates, authentication) but keeps lists and
downloads under `Paths.apt`, takes no part in the host's package database and runs none of the
host's hooks. So it also works where /var/lib/apt/lists is empty, as on a bare machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmgr.artifact.faults import failed
from vmgr.artifact.sources import Source, debian_sources, read_sources
from vmgr.artifact.sparse import allocated_bytes
from vmgr.artifact.threads import in_thread
from vmgr.artifact.tools import build_environment, require
from vmgr.errors import NotFoundError, UnsupportedError
from vmgr.paths import ensure_private_directory
from vmgr.spawner import Completed, ProcessFailedError, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from concurrent.futures import Executor

    from vmgr.artifact import Progress
    from vmgr.paths import Paths

__all__ = ["Apt", "Package", "debian_architecture", "host_codename"]

_IMPORT: Final = "import a root file system tarball with `vmgr image import` instead"
_UPDATE_DEADLINE: Final = 300.0
_DOWNLOAD_DEADLINE: Final = 1_800.0
_QUERY_DEADLINE: Final = 60.0
_FRESH: Final = (
    3_600.0  # seconds for which fetched lists are good: mirrors change a few times a day
)
_APT_DIRECTORY: Final = Path("/etc/apt")
_OS_RELEASE: Final = Path("/etc/os-release")
_ARCHITECTURES: Final = {"x86_64": "amd64"}

# What of the host's apt settings also goes for fetching an image's packages.
_FETCHING: Final = re.compile(
    r"^Acquire::(?:http|https|Retries|Check-Valid-Until|Check-Date|ForceIPv4|ForceIPv6)\b"
)


@dataclass(frozen=True)
class Package:
    """A package's newest version at the mirrors."""

    name: str
    version: str
    depends: str


def debian_architecture() -> str:
    """Debian's name of this host's architecture.

    Raises:
        UnsupportedError: it is not one that vmgr has kernels for.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise UnsupportedError(
            f"machines on {machine} are not supported",
            next_step=f"use a host with {' or '.join(_ARCHITECTURES)}",
        )
    return _ARCHITECTURES[machine]


def host_codename(os_release: Path = _OS_RELEASE) -> str:
    """The host's Debian release, such as `bookworm`.

    Raises:
        UnsupportedError: the host is not Debian.
    """
    fields: dict[str, str] = {}
    try:
        text = os_release.read_text(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        fields[name] = value.strip().strip("\"'")
    codename = fields.get("VERSION_CODENAME", "")
    if fields.get("ID") != "debian" or not re.fullmatch(r"[a-z]+", codename):
        name = fields.get("PRETTY_NAME") or "this host's system"
        raise UnsupportedError(
            f"{name} is not a Debian release, so it has no Debian mirrors configured",
            next_step=_IMPORT,
        )
    return codename


class Apt:
    """apt with a state of its own.

    Args:
        paths: `paths.apt` is where it keeps that state.
        executor: for looking into directories.
        directory: the apt directory whose sources count.
    """

    def __init__(
        self, paths: Paths, executor: Executor, *, directory: Path = _APT_DIRECTORY
    ) -> None:
        self._root = paths.apt
        self._executor = executor
        self._directory = directory
        self._sources: list[Source] | None = None
        self._fetched_at = 0.0

    async def sources(self, progress: Progress) -> list[Source]:
        """Debian's own sources as this host has them, with fresh lists fetched.

        Raises:
            UnsupportedError: the host has none, or is not Debian, or has no apt.
            VmgrError: no mirror could be reached.
        """
        async with self._locked():
            return await self._fresh_sources(progress)

    async def fetch_options(self) -> list[str]:
        """The host's apt settings that say how to fetch, as lines of apt.conf(5)."""
        require("apt-config")
        done = await run(["apt-config", "dump"], env=build_environment(), deadline=_QUERY_DEADLINE)
        lines = done.stdout.decode(errors="replace").splitlines()
        return [line for line in lines if _FETCHING.match(line) and not line.endswith(' "";')]

    async def packages(self, pattern: str, progress: Progress) -> list[Package]:
        """The newest versions of the packages whose whole name matches a regular expression."""
        async with self._locked():
            await self._fresh_sources(progress)
            return await self._packages(pattern)

    async def _packages(self, pattern: str) -> list[Package]:
        # `pkgnames` also gives names that are only depended on: `show` knows nothing of those.
        names = [
            name for name in (await self._query("pkgnames")).split() if re.fullmatch(pattern, name)
        ]
        if not names:
            return []
        text = await self._query("show", "--no-all-versions", *names)
        found = []
        for paragraph in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
            if "Package" in fields and "Version" in fields:
                depends = fields.get("Depends", "")
                found.append(Package(fields["Package"], fields["Version"], depends))
        return found

    async def download(self, package: Package, progress: Progress) -> Path:
        """Fetch a package's file; apt checks it against the signed lists and resumes what it has.

        Raises:
            NotFoundError: the mirrors no longer have that version.
            VmgrError: no mirror could be reached.
        """
        async with self._locked():
            await self._fresh_sources(progress)
            directory = self._root / "archives"
            ensure_private_directory(directory)
            wanted = f"{package.name}={package.version}"
            await self._apt_get("download", wanted, cwd=directory, deadline=_DOWNLOAD_DEADLINE)
        # apt writes the epoch's colon as %3a, see apt-get(8).
        version = package.version.replace(":", "%3a")
        pattern = f"{package.name}_{version}_*.deb"
        found = await in_thread(self._executor, lambda: sorted(directory.glob(pattern)))
        if found:
            return found[0]
        raise NotFoundError(f"the mirrors no longer have {wanted}", next_step="try again")

    def clean(self) -> int:
        """Remove downloaded packages; gives the bytes freed. Blocks."""
        paths = [*self._root.glob("archives/*.deb"), *self._root.glob("archives/partial/*")]
        freed = allocated_bytes(*paths)
        for path in paths:
            path.unlink(missing_ok=True)
        return freed

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Have the state directory to ourselves, also towards other tasks and other helpers.

        flock(1) takes the lock on the open file that we share with it, and leaves it to us: so
        waiting for it can be cancelled and blocks no thread.
        """
        require("flock")
        ensure_private_directory(self._root)
        fd = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await run(["flock", "--exclusive", str(fd)], env=build_environment(), pass_fds=[fd])
            yield
        finally:
            os.close(fd)

    async def _fresh_sources(self, progress: Progress) -> list[Source]:
        now = asyncio.get_running_loop().time()
        if self._sources is None or now - self._fetched_at > _FRESH:
            self._sources = await self._refresh(progress)
            self._fetched_at = now
        return self._sources

    async def _refresh(self, progress: Progress) -> list[Source]:
        require("apt-get", "apt-cache")
        codename = host_codename()
        candidates = debian_sources(
            await in_thread(self._executor, read_sources, self._directory), codename
        )
        if not candidates:
            raise _no_sources()
        progress("Fetching the package lists of the host's Debian mirrors", None)
        self._write_configuration(candidates)
        await self._apt_get("update", "--error-on=any", deadline=_UPDATE_DEADLINE)
        genuine = await self._genuine()
        chosen = [
            Source(s.uris, suites, s.components, s.options)
            for s in candidates
            if (suites := tuple(x for x in s.suites if any((u, x) in genuine for u in s.uris)))
        ]
        if not chosen:
            raise _no_sources()
        if chosen != candidates:
            self._write_configuration(chosen)
        return chosen

    def _write_configuration(self, sources: Sequence[Source]) -> None:
        for name in ("", "lists", "archives", "empty"):
            ensure_private_directory(self._root / name)
        text = "\n".join(source.deb822() for source in sources)
        (self._root / "debian.sources").write_text(text)
        root = _quoted(self._root)
        # Hooks of the host (cleaning its cache, telling its desktop) are about the host's own apt.
        (self._root / "apt.conf").write_text(
            "#clear APT::Update::Pre-Invoke;\n"
            "#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n"
            f'Dir::State "{root}";\n'
            f'Dir::State::lists "{root}/lists";\n'
            'Dir::State::status "/dev/null";\n'
            f'Dir::Cache "{root}";\n'
            f'Dir::Cache::archives "{root}/archives";\n'
            f'Dir::Etc::sourcelist "{root}/debian.sources";\n'
            f'Dir::Etc::sourceparts "{root}/empty";\n'
            f'APT::Architecture "{debian_architecture()}";\n'
            f'APT::Architectures "{debian_architecture()}";\n'
            # The directories are private, so apt's own user could not get at them.
            'APT::Sandbox::User "root";\n'
            'Acquire::Languages "none";\n'
            "#clear Acquire::IndexTargets;\n"
            "Acquire::IndexTargets::deb::Packages {\n"
            '  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";\n'
            '  ShortDescription "Packages";\n'
            '  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";\n'
            "};\n"
        )

    async def _genuine(self) -> set[tuple[str, str]]:
        """The (URI, suite) pairs whose signed Release file says Debian."""
        done = await self._apt_get(
            "indextargets", "--format", "$(SITE)|$(RELEASE)|$(ORIGIN)", "Created-By: Packages",
            deadline=_QUERY_DEADLINE,
        )  # fmt: skip
        found = set()
        for line in done.stdout.decode(errors="replace").splitlines():
            site, _, rest = line.partition("|")
            suite, _, origin = rest.partition("|")
            if origin == "Debian":
                found.update({(site, suite), (f"{site}/", suite)})
        return found

    async def _apt_get(
        self, *arguments: str, deadline: float, cwd: Path | None = None
    ) -> Completed:
        try:
            return await run(
                ["apt-get", "-q", "-c", self._root / "apt.conf", *arguments],
                env=build_environment(), cwd=cwd or "/", deadline=deadline, limit=1 << 20,
            )  # fmt: skip
        except ProcessFailedError as error:
            raise failed(error, "fetch from the package mirror", self._root) from error
        except TimeoutError:
            raise UnsupportedError(
                f"the package mirror did not answer within {deadline:.0f} seconds",
                next_step="check the network and the proxy settings of apt, then try again",
            ) from None

    async def _query(self, *arguments: str) -> str:
        try:
            done = await run(
                ["apt-cache", "-c", self._root / "apt.conf", *arguments],
                env=build_environment(), deadline=_QUERY_DEADLINE, limit=32 << 20,
            )  # fmt: skip
        except ProcessFailedError as error:
            raise failed(error, "read the package lists", self._root) from error
        return done.stdout.decode(errors="replace")


def _quoted(path: Path) -> str:
    text = str(path)
    if '"' in text or "\n" in text or "\\" in text:
        raise UnsupportedError(
            f"apt cannot work in a directory called {text!r}",
            next_step="set XDG_CACHE_HOME (or VMGR_HOME) to a directory with a plain name",
        )
    return text


def _no_sources() -> UnsupportedError:
    return UnsupportedError(
        "this host has no Debian mirror configured",
        next_step="add one under /etc/apt/sources.list.d, or " + _IMPORT,
    )
