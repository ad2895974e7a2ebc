"""Where secrets are kept: files, and a real keyring on a bus of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import UsageError
from vmgr.secret import MAX_SECRET, FileStore, Keyring, NoKeyringError, check_secret_name

if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDED = ("dbus-daemon", "gnome-keyring-daemon")


class TestNames:
    def test_what_can_be_a_files_name(self) -> None:
        for name in ("TOKEN", "a.b-c", "0"):
            assert check_secret_name(name) == name
        for name in ("", ".a", "../a", "a/b", "-a", "a b", "a\n", "x" * 65, "ä"):
            with pytest.raises(UsageError):
                check_secret_name(name)


class TestFiles:
    def test_set_get_list_remove(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path / "secrets")
        assert store.names() == []
        assert store.get("a") is None
        store.set("a", b"one")
        store.set("a", b"two")
        store.set("b", b"x" * MAX_SECRET)
        assert store.names() == ["a", "b"]
        assert store.get("a") == b"two"
        assert store.get("b") == b"x" * MAX_SECRET
        assert store.remove("a")
        assert not store.remove("a")
        assert store.names() == ["b"]

    def test_only_this_user_reads_them(self, tmp_path: Path) -> None:
        directory = tmp_path / "secrets"
        directory.mkdir(mode=0o755)
        before = os.umask(0)
        try:
            FileStore(directory).set("a", b"one")
        finally:
            os.umask(before)
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "a").stat().st_mode & 0o777 == 0o600
        assert [path.name for path in directory.iterdir()] == ["a"]

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        directory = tmp_path / "secrets"
        directory.mkdir()
        (tmp_path / "other").write_text("other")
        (directory / "a").symlink_to(tmp_path / "other")
        with pytest.raises(OSError, match="symbolic"):
            FileStore(directory).get("a")


@pytest.fixture(scope="module")
def bus() -> Iterator[str]:
    """A session bus with a keyring that is unlocked."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    root = Path(tempfile.mkdtemp(prefix="vmgr-t-", dir="/tmp"))
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(root), "XDG_RUNTIME_DIR": str(root),
        "XDG_DATA_HOME": str(root / "data"), "XDG_CONFIG_HOME": str(root / "config"),
    }  # fmt: skip
    (root / "bus.conf").write_text(
        f"<busconfig><type>session</type><listen>unix:path={root}/bus</listen>"
        '<policy context="default"><allow send_destination="*" eavesdrop="true"/>'
        '<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>'
    )
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={root}/bus.conf", "--nofork", "--print-address"],
        env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert daemon.stdout is not None
    address = daemon.stdout.readline().decode().strip()
    keyring = subprocess.Popen(
        ["gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"],
        env={**environment, "DBUS_SESSION_BUS_ADDRESS": address},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert keyring.stdin is not None
    assert keyring.stdout is not None
    keyring.stdin.write(b"password")
    keyring.stdin.close()
    keyring.stdout.readline()
    yield address
    for process in (keyring, daemon):
        process.kill()
        process.wait(30)
    keyring.stdout.close()
    daemon.stdout.close()
    shutil.rmtree(root, ignore_errors=True)


class TestKeyring:
    async def test_set_get_list_remove(self, bus: str) -> None:
        keyring = Keyring(lambda: ["unix:path=/none", bus])  # of a session that has ended, first
        assert await keyring.get("token") is None
        await keyring.set("token", b"one")
        await keyring.set("token", b"two \xc3\xa4\n")
        assert await keyring.names() == ["token"]
        assert await keyring.get("token") == b"two \xc3\xa4\n"
        assert await keyring.remove("token")
        assert not await keyring.remove("token")
        assert await keyring.names() == []

    async def test_where_there_is_none(self, tmp_path: Path) -> None:
        for addresses in ([], [f"unix:path={tmp_path}/none"]):
            keyring = Keyring(lambda found=addresses: found)
            with pytest.raises(NoKeyringError):
                await keyring.get("token")
            with pytest.raises(NoKeyringError):
                await keyring.names()
            with pytest.raises(NoKeyringError):
                await keyring.set("token", b"x")
