from __future__ import annotations

import lzma
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import StateError
from vmgr.kernel.modules import boot_modules, unpack_modules

if TYPE_CHECKING:
    from pathlib import Path

# Cut down from Debian's 6.1 cloud kernel: everything is a module, the deepest dependency last.
DEP_6_1 = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci_legacy_dev.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_legacy_dev.ko \
kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio_ring.ko \
kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko \
kernel/drivers/virtio/virtio.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/lib/crc16.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/crypto/crc32c_generic.ko:
kernel/net/unrelated.ko:
"""
DEP_6_12 = "kernel/drivers/block/virtio_blk.ko:\nkernel/fs/squashfs/squashfs.ko:\n"
BUILTIN_6_12 = """\
kernel/drivers/virtio/virtio_pci.ko
kernel/drivers/char/virtio_console.ko
kernel/fs/ext4/ext4.ko
kernel/crypto/crc32c_generic.ko
"""


def tree(tmp_path: Path, dep: str, builtin: str) -> Path:
    (tmp_path / "modules.dep").write_text(dep)
    (tmp_path / "modules.builtin").write_text(builtin)
    return tmp_path


def test_each_module_comes_after_those_it_depends_on(tmp_path: Path) -> None:
    loads = [module.name for module in boot_modules(tree(tmp_path, DEP_6_1, ""))]
    assert len(loads) == len(set(loads))
    for before, after in (
        ("virtio", "virtio_ring"),
        ("virtio_ring", "virtio_pci"),
        ("virtio_pci_legacy_dev", "virtio_pci"),
        ("virtio_ring", "virtio_blk"),
        ("jbd2", "ext4"),
        ("crc16", "ext4"),
        ("crc32c_generic", "ext4"),
    ):
        assert loads.index(before) < loads.index(after)
    assert "unrelated" not in loads


def test_what_is_built_in_is_not_loaded(tmp_path: Path) -> None:
    (module,) = boot_modules(tree(tmp_path, DEP_6_12, BUILTIN_6_12))
    assert (module.name, module.path) == ("virtio_blk", "kernel/drivers/block/virtio_blk.ko")


def test_a_kernel_that_cannot_do_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="the kernel has no virtio_blk, neither built in nor"):
        boot_modules(tree(tmp_path, "", BUILTIN_6_12))
    (tmp_path / "modules.dep").unlink()
    with pytest.raises(StateError, match=r"no usable modules\.dep"):
        boot_modules(tmp_path)


def test_modules_are_unpacked_in_place(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/a.ko.xz").write_bytes(lzma.compress(b"module a"))
    (tmp_path / "kernel/b.ko").write_bytes(b"module b")
    (tmp_path / "build").symlink_to("/usr/src/gone")
    assert unpack_modules(tmp_path) == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "kernel").iterdir()} == {
        "a.ko": b"module a",
        "b.ko": b"module b",
    }
    assert not (tmp_path / "build").is_symlink()


@pytest.mark.parametrize("content", [b"junk", lzma.compress(b"x" * 9999)[:50]])
def test_damaged_modules_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ko.xz").write_bytes(content)
    with pytest.raises(StateError, match=r"the kernel module a\.ko\.xz is damaged"):
        unpack_modules(tmp_path)
