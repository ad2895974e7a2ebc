"""Writing and deleting what `vmgr helper install` puts into place, without a systemd to talk to."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import StateError
from vmgr.identity import APP_ID, SERVICE_UNIT, SOCKET_UNIT
from vmgr.service.install import remove, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Home


def test_where_there_is_no_user_manager(bare_home: Home) -> None:
    done = bare_home.vmgr("helper", "install", check=False)
    assert done.returncode == 1
    assert b"systemd does not run a manager for you here" in done.stderr
    assert not (bare_home.root / "config/systemd").exists()

    said = bare_home.vmgr("helper", "install", "--files-only").stdout.decode()
    assert "systemctl --user enable --now vmgr-helper.socket" in said
    units = bare_home.root / "config/systemd/user"
    assert {SOCKET_UNIT, SERVICE_UNIT} <= {path.name for path in units.iterdir()}
    assert (bare_home.data / f"applications/{APP_ID}.desktop").is_file()
    environment = bare_home.root / "config/vmgr/helper.environment"
    assert stat.S_IMODE(environment.stat().st_mode) == 0o600
    assert f'XDG_STATE_HOME="{bare_home.root}/state"\n' in environment.read_text()
    again = bare_home.vmgr("helper", "install", "--files-only").stdout.decode()
    assert "wrote" not in again

    # Units have one name each.
    trial = bare_home.root / "trial"
    trial.mkdir()
    mine = dict(bare_home.environment)
    bare_home.environment["VMGR_HOME"] = str(trial)
    for verb in ("install", "uninstall"):
        done = bare_home.vmgr("helper", verb, *["--files-only"][: verb == "install"], check=False)
        assert b"another vmgr of yours" in done.stderr
    bare_home.environment = mine

    # The helper is started by commands as before, and `status` sees it.
    assert bare_home.vmgr("helper", "status", check=False).returncode == 3
    bare_home.vmgr("ls")
    assert not bare_home.json("helper", "status")["managed"]
    said = bare_home.vmgr("helper", "uninstall").stdout.decode()
    assert "machines that run go on" in said
    assert list(units.iterdir()) == []
    assert not environment.exists()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"cannot write .*/file/x: "):
        write({tmp_path / "file/x": (b"", 0o644)})
    (tmp_path / "directory").mkdir()
    with pytest.raises(StateError, match=r"cannot delete .*/directory"):
        remove([tmp_path / "directory"])
    assert remove([tmp_path / "missing"]) == []
