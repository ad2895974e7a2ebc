from __future__ import annotations

import pytest

from vmgr.artifact.tools import PACKAGES, build_environment, missing_tools, require
from vmgr.errors import UnsupportedError


def test_missing_tools_name_the_packages_that_bring_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmgr.artifact.tools.shutil.which", lambda *_args, **_kwargs: None)
    with pytest.raises(UnsupportedError) as caught:
        require("mke2fs", "mmdebstrap", "resize2fs")
    assert caught.value.message == "mke2fs, mmdebstrap, resize2fs are not installed"
    assert caught.value.next_step == "run `apt-get install e2fsprogs mmdebstrap` as root"


def test_all_that_this_host_has_is_found_also_in_sbin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an ordinary user's
    assert missing_tools("mke2fs", "tar") == []
    require("mke2fs", "tar")


def test_every_tool_has_a_package() -> None:
    assert all(PACKAGES.values())


def test_tools_speak_untranslated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert build_environment()["LC_ALL"] == "C.UTF-8"
