"""One name everywhere (process rule 10), in files that the desktop's own tools accept."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vmgr.identity import APP_ID, APP_NAME, UNITS
from vmgr.identity.files import SHARE, data_home, identity_files
from vmgr.loopback import DOMAIN

ROOT = Path(__file__).resolve().parents[2]
DESKTOP = SHARE / f"applications/{APP_ID}.desktop"
METAINFO = SHARE / f"metainfo/{APP_ID}.metainfo.xml"
ICON = SHARE / f"icons/hicolor/scalable/apps/{APP_ID}.svg"


def test_the_id_is_of_our_own_domain() -> None:
    assert ".".join((*reversed(DOMAIN.split(".")), APP_NAME)) == APP_ID
    # What D-Bus takes as a name, dbus-specification "Bus names"; and no longer than it may be.
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+", APP_ID)
    assert all(name.startswith("vmgr-") for name in UNITS)


def test_there_is_each_file_under_that_name() -> None:
    assert set(identity_files()) == {
        str(path.relative_to(SHARE)) for path in (DESKTOP, METAINFO, ICON)
    }
    assert f"\nIcon={APP_ID}\n" in DESKTOP.read_text()
    component = ET.parse(METAINFO).getroot()  # noqa: S314 (ours)
    assert component.findtext("id") == APP_ID
    assert component.findtext("launchable") == DESKTOP.name
    assert component.findtext("icon") == APP_ID


def test_the_wheel_carries_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {str(SHARE.relative_to(ROOT)): "share"}


def test_the_icon_is_a_picture_of_its_own() -> None:
    root = ET.parse(ICON).getroot()  # noqa: S314 (ours)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("width") == root.get("height"), "icons are square"
    assert "href" not in ICON.read_text(), "it refers to nothing else"


def test_where_a_persons_own_are() -> None:
    assert data_home({"HOME": "/home/ann"}) == Path("/home/ann/.local/share")
    assert data_home({"HOME": "/x", "XDG_DATA_HOME": "/data"}) == Path("/data")
    assert data_home({"HOME": "/x", "XDG_DATA_HOME": "relative"}) == Path("/x/.local/share")


@pytest.mark.skipif(shutil.which("desktop-file-validate") is None, reason="not installed")
def test_the_desktop_entry_is_valid() -> None:
    done = subprocess.run(
        ["desktop-file-validate", DESKTOP], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("appstreamcli") is None, reason="not installed")
def test_the_appstream_data_is_valid() -> None:
    done = subprocess.run(
        ["appstreamcli", "validate", "--no-net", METAINFO],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # It remarks that `internal` is no top-level domain that can be had: that is the point.
    remarks = [line for line in done.stdout.splitlines() if re.match(r"[EWI]:", line)]
    assert done.returncode == 0, done.stdout
    assert all("cid-maybe-not-rdns" in line for line in remarks), done.stdout
