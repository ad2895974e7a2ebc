"""The person's account in machines: who gets one, as whom commands run, what is left alone."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest
from tests.conftest import SMALL, Home

from vmgr.api.models import CreateMachine, ImageInfo
from vmgr.config import Config
from vmgr.errors import UsageError
from vmgr.helper.accounts import Accounts, _fitting
from vmgr.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def home(quick_module_home: Home) -> Home:
    """One home for all of these tests; machines in it start from the template."""
    return quick_module_home


@pytest.fixture(scope="module")
def web(home: Home) -> str:
    """A running machine whose commands run as `dev`."""
    return started(home, "--user", "dev")


IMAGE = (*SMALL, "--image", "debian-minimal")


def started(home: Home, *options: str, shape: tuple[str, ...] = IMAGE) -> str:
    name = f"m{secrets.token_hex(3)}"
    home.vmgr("create", *shape, *options, "--start", name)
    return name


def said(home: Home, *words: str) -> str:
    return home.vmgr(*words).stdout.decode().strip()


def test_commands_run_as_the_user_who_was_asked_for(home: Home, web: str) -> None:
    uid = os.getuid() or 1_000
    script = "id -un; id -u; pwd; echo $HOME $USER; echo $SHELL; touch mine; stat -c %U . mine"
    lines = said(home, "exec", web, "--", "sh", "-c", script).splitlines()
    assert lines[:4] == ["dev", str(uid), "/home/dev", "/home/dev dev"]
    assert lines[4] in {"/bin/bash", "/usr/bin/bash", "/bin/sh"}
    assert lines[5:] == ["dev", "dev"]
    assert said(home, "exec", "-u", "root", web, "--", "id", "-u") == "0"
    info = home.json("info", web)
    assert info["user"] == "dev"
    assert any("-u root" in note for note in info["notes"])  # this image has no sudo


def test_root_is_one_word_away_once_there_is_sudo(home: Home, web: str) -> None:
    rule = said(home, "exec", "-u", "root", web, "--", "cat", "/etc/sudoers.d/vmgr-user")
    assert rule.splitlines()[-1] == "dev ALL=(ALL:ALL) NOPASSWD:ALL"
    modes = said(
        home, "exec", "-u", "root", web, "--",
        "stat", "-c", "%a %U", "/etc/sudoers.d/vmgr-user", "/home/dev", "/etc/shadow",
    )  # fmt: skip
    assert modes.splitlines() == ["440 root", "700 dev", "640 root"]
    shadow = said(home, "exec", "-u", "root", web, "--", "grep", "^dev:", "/etc/shadow")
    assert shadow.startswith("dev:*:")


def test_made_once_and_what_the_person_changed_stays(home: Home, web: str) -> None:
    change = "sed -i 's,^dev:.*,&.mine,' /etc/passwd; echo '# mine' > /etc/sudoers.d/vmgr-user"
    home.vmgr("exec", "-u", "root", web, "--", "sh", "-c", change)
    before = said(home, "exec", "-u", "root", web, "--", "sh", "-c", "cat /etc/passwd /etc/group")
    home.vmgr("suspend", web)
    # A new helper, too, finds it as it is.
    home.kill_helper()
    assert said(home, "exec", web, "--", "id", "-un") == "dev"
    after = said(home, "exec", "-u", "root", web, "--", "sh", "-c", "cat /etc/passwd /etc/group")
    assert after == before
    rule = said(home, "exec", "-u", "root", web, "--", "cat", "/etc/sudoers.d/vmgr-user")
    assert rule == "# mine"
    home.vmgr("exec", "-u", "root", web, "--", "sed", "-i", r"s,\.mine$,,", "/etc/passwd")


def test_a_fork_has_it_too(home: Home, web: str) -> None:
    child = f"{web}-fork"
    home.vmgr("fork", web, child)
    assert said(home, "exec", child, "--", "id", "-un") == "dev"
    home.vmgr("rm", "-f", child)


def test_an_account_that_is_there_is_used_as_it_is(home: Home, web: str) -> None:
    """The agent's own part, on files as images have them."""
    make = (
        "cp -a /etc/passwd /root/passwd; "
        "printf 'ubuntu:x:4000:4000::/home/u:/bin/sh\\nzoe:x:4001:4001::/:/bin/sh' >> /etc/passwd"
    )
    home.vmgr("exec", "-u", "root", web, "--", "sh", "-c", make)
    tag = f"{web}:peopled"
    home.vmgr("exec", "-u", "root", web, "--", "cp", "/etc/passwd", "/root/before")
    home.vmgr("snapshot", "create", web, "peopled")
    other = started(home, "--from", tag, "--user", "zoe", shape=())
    assert said(home, "exec", other, "--", "id", "-un") == "zoe"
    told = said(home, "info", other)
    assert "zoe" in told
    same = ("exec", "-u", "root", other, "--", "cmp", "/etc/passwd", "/root/before")
    home.vmgr(*same)
    taken = started(home, "--from", tag, "--user", "mail", shape=())
    done = home.vmgr("exec", taken, "--", "id", "-un")
    assert done.stdout == b"root\n"
    assert b"one of the system's own users" in done.stderr or "system's own" in home.logs()
    home.vmgr("rm", "-f", other, taken)
    home.vmgr("snapshot", "rm", tag)
    home.vmgr("exec", "-u", "root", web, "--", "cp", "-a", "/root/passwd", "/etc/passwd")


def test_a_run_and_older_machines_are_roots(home: Home) -> None:
    home.vmgr("config", "set", "user.default", "me")
    try:
        assert said(home, "run", *SMALL, "debian-minimal", "--", "id", "-u") == "0"
    finally:
        home.vmgr("config", "set", "user.default", "root")


def test_a_name_that_is_none_is_refused(home: Home) -> None:
    for name in ("", "Ann", "a:b", "-x", "a" * 33):
        done = home.vmgr("create", f"--user={name}", check=False)
        assert done.returncode == 2, name
        assert b"cannot be a user's name" in done.stderr
    assert home.vmgr("create", "--root", "--user", "ann", check=False).returncode == 2


class TestWhoGetsOne:
    def _wanted(self, tmp_path: Path, default_user: str = "root", **asked: object) -> str | None:
        image = ImageInfo(
            digest="sha256:0", names=[], source="", created_at=0, size_bytes=0, init=None,
            default_user=default_user, env={}, entrypoint=[], architecture="amd64",
        )  # fmt: skip
        paths = Paths.from_environment({"HOME": str(tmp_path)})
        request = CreateMachine(**asked)  # type: ignore[arg-type]
        found = Accounts(None).wanted(request, image, Config.load(paths))  # type: ignore[arg-type]
        return None if found is None else found.name

    @pytest.mark.skipif(os.getuid() == 0, reason="root's own user in a machine is root")
    def test_a_named_machine_of_an_ordinary_image(self, tmp_path: Path) -> None:
        assert self._wanted(tmp_path) is not None

    def test_a_run_and_an_image_with_a_user_of_its_own_do_not(self, tmp_path: Path) -> None:
        assert self._wanted(tmp_path, ephemeral=True) is None
        assert self._wanted(tmp_path, default_user="postgres") is None

    def test_who_is_asked_for_comes_before_both(self, tmp_path: Path) -> None:
        assert self._wanted(tmp_path, ephemeral=True, user="dev") == "dev"
        assert self._wanted(tmp_path, default_user="postgres", user="dev") == "dev"
        assert self._wanted(tmp_path, user="root") is None
        with pytest.raises(UsageError):
            self._wanted(tmp_path, user="Ä")

    def test_names_of_this_computer_become_names_of_any(self) -> None:
        assert _fitting("Ann.Smith@corp.example") == "ann_smith_corp_example"
        assert _fitting("9lives") == "_9lives"
