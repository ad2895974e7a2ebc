from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmgr.audit import rules
from vmgr.errors import UsageError
from vmgr.identity import SERVICE_UNIT, SESSION_UNIT, SOCKET_UNIT, UNITS
from vmgr.paths import Paths
from vmgr.sandbox import scope
from vmgr.service import environment
from vmgr.service.environment import lasting_environment
from vmgr.service.units import Layout, environment_file, units


def layout(home: Path) -> Layout:
    environ = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    return Layout.of(Paths.from_environment(environ), environ)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("home", ["plain", "with space", "odd 50% $HOME;x"])
def test_systemd_understands_the_units(tmp_path: Path, home: str) -> None:
    where = tmp_path / home
    (where / "systemd/user").mkdir(parents=True)
    (where / "run").mkdir()
    python = where / "python"
    python.symlink_to(sys.executable)
    made = Layout(where / "run/s", where / "environment", str(python), where / "run")
    for name, text in units(made).items():
        (where / "systemd/user" / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no",
         *(str(where / "systemd/user" / name) for name in UNITS)],
        env={"HOME": str(where), "XDG_RUNTIME_DIR": str(where / "run"), "PATH": "/usr/bin:/bin",
             "SYSTEMD_UNIT_PATH": f"{where}/systemd/user:"},
        capture_output=True, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.decode().splitlines() if "vmgr" in line]
    assert not ours, "\n".join(ours)
    assert done.returncode == 0, done.stderr.decode()


def test_the_socket_is_where_clients_look(tmp_path: Path) -> None:
    assert layout(tmp_path).listens_on() == "%t/vmgr/helper.sock"
    elsewhere = Layout(Path("/srv/50%/run/helper.sock"), tmp_path, runtime=tmp_path)
    assert elsewhere.listens_on() == "/srv/50%%/run/helper.sock"
    with pytest.raises(UsageError):
        Layout(Path("/s"), tmp_path, '/opt/"python').command("vmgr.helper")
    with pytest.raises(UsageError):
        Layout(Path("/srv/a\nExecStart=x"), tmp_path).listens_on()


def test_machines_outlive_the_service(tmp_path: Path) -> None:
    text = units(layout(tmp_path))[SERVICE_UNIT]
    assert "KillMode=process\n" in text, "rule 6"
    assert "Delegate" not in text, "the next helper could not be started in a group that is divided"
    assert "OOMPolicy=continue\n" in text


def test_the_scope_ends_after_what_ends_its_machines() -> None:
    call = scope.scope_call(42, 1000, user=True)
    where = call.index("Before")
    assert call[where : where + 5] == ["Before", "as", "2", SERVICE_UNIT, SESSION_UNIT]
    assert "user@0.service" in scope.scope_call(42, 0, user=False)


def test_a_service_is_known_by_its_group(tmp_path: Path) -> None:
    assert not scope.is_service(tmp_path)
    (tmp_path / "cgroup").write_text(
        f"1:name=systemd:/\n0::/user.slice/user-1.slice/user@1.service/app.slice/{SERVICE_UNIT}\n"
    )
    assert scope.is_service(tmp_path)
    (tmp_path / "cgroup").write_text("0::/user.slice/session-1.scope\n")
    assert not scope.is_service(tmp_path)


def test_the_audit_knows_what_a_helper_may_have() -> None:
    assert rules._HELPER_ENVIRONMENT >= environment._PASSED_ON | environment.SERVICE_MANAGER
    assert rules._HELPER_PREFIXES == environment._PASSED_ON_PREFIXES


def test_the_environment_that_a_service_is_given() -> None:
    told = lasting_environment({
        "HOME": "/home/ann", "XDG_RUNTIME_DIR": "/run/user/1", "XDG_SESSION_ID": "7",
        "XDG_DATA_HOME": "/data", "VMGR_HOME": "/v", "https_proxy": "http://a:b$c@proxy",
        "SECRET": "x", "NOTIFY_SOCKET": "/x", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/x",
        "PATH": "/opt/bin:/usr/bin",
    })  # fmt: skip
    assert set(told) == {"PATH", "VMGR_HOME", "XDG_DATA_HOME", "https_proxy"}
    text = environment_file({**told, "LANG": "evil\nSECRET=1"})
    assert 'https_proxy="http://a:b\\$c@proxy"\n' in text
    assert "SECRET" not in text
    assert SOCKET_UNIT.endswith(".socket")
