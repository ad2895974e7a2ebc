"""The kernel's module tree: unpacking it, and which modules the boot needs in which order."""

from __future__ import annotations

import lzma
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["BOOT_MODULES", "NETWORK_MODULES", "BootModule", "boot_modules", "unpack_modules"]

BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
"""What the agent needs to reach its port and to mount the root and the module disk, in this order.

Nothing more: under emulation each module costs 10 to 70 ms of the boot. All others come from the
module disk, when they are asked for.
"""
NETWORK_MODULES: Final = ("virtio_net", "tcp_diag", "udp_diag")
"""What the network device needs, and the agent to see who listens: loaded while the root is being
mounted, so that they delay nobody."""
_IF_THERE: Final = (
    "crc32c_generic",
)  # ext4 asks for the algorithm by name, which no dependency shows
_MAX_MODULE: Final = 64 << 20
_MAX_LIST: Final = 8 << 20


@dataclass(frozen=True)
class BootModule:
    """A module in the initramfs."""

    name: str
    path: str
    """Below the module directory: `kernel/fs/ext4/ext4.ko`."""


def unpack_modules(tree: Path) -> int:
    """Replace each compressed module in `tree` by the plain one; gives their number. Takes seconds.

    The agent's and the guest's loaders need not know about compression then, and the guest's CPU,
    which may be an emulated one, has nothing to unpack.
    """
    count = 0
    for path in sorted(tree.rglob("*.ko*")):
        if path.suffix == ".xz":
            decoder = lzma.LZMADecompressor(memlimit=256 << 20)
            try:
                data = decoder.decompress(path.read_bytes(), _MAX_MODULE)
            except lzma.LZMAError as error:
                raise StateError(f"the kernel module {path.name} is damaged") from error
            if not decoder.eof:
                raise StateError(f"the kernel module {path.name} is damaged")
            path.with_suffix("").write_bytes(data)
            path.unlink()
        elif path.suffix != ".ko":
            raise StateError(f"the kernel module {path.name} is packed in an unknown way")
        count += 1
    for name in ("build", "source"):  # links to headers that are not there
        (tree / name).unlink(missing_ok=True)
    shutil.rmtree(tree / "vdso", ignore_errors=True)
    return count


def boot_modules(tree: Path, wanted: Sequence[str] = BOOT_MODULES) -> list[BootModule]:
    """The modules of the initramfs, each after those it depends on.

    Args:
        tree: the kernel's module directory.
        wanted: `BOOT_MODULES` or `NETWORK_MODULES`.

    Raises:
        StateError: the kernel has one neither built in nor as a module.
    """
    builtin = {_name(line) for line in _lines(tree / "modules.builtin")}
    depends: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in _lines(tree / "modules.dep"):
        path, _, rest = line.partition(":")
        paths[_name(path)] = path
        # modules.dep lists all that is needed, the deepest last, see modules.dep(5).
        depends[_name(path)] = [_name(word) for word in reversed(rest.split())]
    ordered: list[str] = []
    optional = _IF_THERE if wanted is BOOT_MODULES else ()
    for needed in (*optional, *wanted):
        if needed in builtin:
            continue
        if needed not in paths:
            if needed in optional:
                continue
            raise StateError(
                f"the kernel has no {needed}, neither built in nor as a module",
                next_step="use Debian's cloud kernel",
            )
        for name in (*depends[needed], needed):
            if name not in ordered:
                ordered.append(name)
    return [BootModule(name, paths[name]) for name in ordered]


def _name(path: str) -> str:
    """The module's name as the kernel has it: no directory, no suffix, underscores."""
    return re.sub(r"\.ko(\..*)?$", "", path.rpartition("/")[2]).replace("-", "_")


def _lines(path: Path) -> list[str]:
    try:
        with path.open() as file:
            return [line for line in file.read(_MAX_LIST).splitlines() if line]
    except OSError as error:
        raise StateError(f"the kernel package has no usable {path.name}") from error
