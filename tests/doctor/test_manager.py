from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmgr.config import Config
from vmgr.doctor import manager
from vmgr.doctor.host import Host
from vmgr.paths import Paths
from vmgr.service.install import service, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    paths = Paths.from_environment(environ)
    with ThreadPoolExecutor(1) as executor:
        yield Host(paths, Config.load(paths), executor, uid=12_345_678)


async def test_what_log_out_means(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "none: the helper is started by" in (await manager.service_manager(host)).summary
    private = tmp_path / "run/systemd/private"
    private.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(private.parent)  # an address holds 107 bytes
        listening.bind(private.name)
        assert "vmgr helper install" in (await manager.service_manager(host)).summary
    private.unlink()  # nobody would answer
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    written = write(service(host.paths, environ))
    assert write(service(host.paths, environ)) == [], "once is enough"
    found = await manager.service_manager(host)
    assert (found.status, found.fix) == ("ok", None)
    assert "suspended when your last session ends" in found.summary
    assert "loginctl enable-linger 12345678" in found.summary
    unit = next(path for path in written if path.name == "vmgr-helper.service")
    unit.write_text("of another version")
    found = await manager.service_manager(host)
    assert (found.status, found.fix) == ("warning", "vmgr helper install")
