from __future__ import annotations

from typing import Any

import pytest

from vmgr.vmm.traffic import DiskTraffic, disk_traffic

# QEMU 7.2's answer, shortened.
ROOT = {
    "device": "",
    "node-name": "root",
    "qdev": "/machine/peripheral/root/virtio-backend",
    "stats": {"rd_bytes": 451584, "wr_bytes": 118784, "unmap_bytes": 0},
}
MODULES = {
    "device": "",
    "node-name": "modules",
    "qdev": "/machine/peripheral/modules/virtio-backend",
    "stats": {"rd_bytes": 287744, "wr_bytes": 0},
}


def test_the_machines_disk_is_found() -> None:
    assert disk_traffic([MODULES, ROOT]) == DiskTraffic(451584, 118784)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [],
        [MODULES],
        ["root"],
        [{**ROOT, "stats": None}],
        [{**ROOT, "stats": {}}],
        [{**ROOT, "stats": {"rd_bytes": "1", "wr_bytes": 1}}],
        [{**ROOT, "stats": {"rd_bytes": -1, "wr_bytes": 1}}],
        [{**ROOT, "stats": {"rd_bytes": 2**64, "wr_bytes": 1}}],
        [{**ROOT, "stats": {"rd_bytes": 1.5, "wr_bytes": 1}}],
    ],
)
def test_what_a_vmm_makes_up_is_unknown(answer: Any) -> None:
    assert disk_traffic(answer) is None
