"""Files: sftp, scp, rsync, git, sshfs."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
import pytest
from tests.ssh.test_sessions import connected

if TYPE_CHECKING:
    from tests.ssh.conftest import Client

pytestmark = pytest.mark.vm
MIB = 1 << 20


def sftp(client: Client, *lines: str) -> str:
    batch = "\n".join(lines).encode()
    done = client.run("sftp", "-F", str(client.config), "-b", "-", "m@vmgr", input=batch)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return done.stdout.decode()


def make_file(path: Path, size: int) -> str:
    """Write what no two parts of are the same; gives its SHA-256."""
    digest = hashlib.sha256()
    seed = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size // MIB):
            part = number.to_bytes(8) + seed[8:]
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def there_and_back(client: Client, tmp_path: Path, size: int) -> None:
    digest = make_file(tmp_path / "big", size)
    sftp(client, f"put {tmp_path}/big sftp-big")
    assert client.out("m@vmgr", "sha256sum < sftp-big").split()[0] == digest
    back = client.run("scp", "-F", str(client.config), "m@vmgr:sftp-big", f"{tmp_path}/back")
    assert back.returncode == 0, back.stderr
    assert sum_of(tmp_path / "back") == digest
    client.out("m@vmgr", "rm sftp-big")


def test_a_large_file_there_and_back(client: Client, tmp_path: Path) -> None:
    there_and_back(client, tmp_path, 64 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not os.environ.get("VMGR_LARGE"), reason="takes more than a minute: VMGR_LARGE=1 runs it"
)
def test_a_gigabyte_there_and_back(client: Client, tmp_path: Path) -> None:
    there_and_back(client, tmp_path, 1024 * MIB)


def test_scp_keeps_trees_modes_and_times(client: Client, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/empty").mkdir(parents=True)
    (tree / "a/run me").write_text("#!/bin/sh\n")
    (tree / "a/run me").chmod(0o751)
    os.utime(tree / "a/run me", (1_000_000_000, 1_000_000_000))
    (tree / "ä").write_bytes(b"x" * 100_000)
    scp = ("scp", "-F", str(client.config), "-rpq")
    assert client.run(*scp, str(tree), "m@vmgr:scp-tree").returncode == 0
    assert client.out("m@vmgr", "stat -c '%a %Y' 'scp-tree/a/run me'") == "751 1000000000\n"
    assert client.run(*scp, "m@vmgr:scp-tree", f"{tmp_path}/back").returncode == 0
    assert sorted(p.relative_to(tree) for p in tree.rglob("*")) == sorted(
        p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*")
    )
    assert (tmp_path / "back/ä").read_bytes() == b"x" * 100_000
    assert (tmp_path / "back/a/run me").stat().st_mtime == 1_000_000_000


async def test_parts_of_files_are_read_and_written(client: Client) -> None:
    async with await connected(client) as connection, connection.start_sftp_client() as files:
        async with files.open("parts", "w+b") as file:
            await file.write(b"0123456789", 0)
            await file.write(b"xx", 4)
            await file.write(b"end", 5_000_000_000)  # beyond what 32 bits count
            assert await file.read(4, 3) == b"3xx6"
            assert await file.read(10, 4_999_999_998) == b"\0\0end"
            assert (await file.stat()).size == 5_000_000_003
        await files.truncate("parts", 3)
        assert await files.getsize("parts") == 3
        await files.remove("parts")
        assert not await files.exists("parts")


async def test_names_change_in_both_ways(client: Client) -> None:
    async with await connected(client) as connection, connection.start_sftp_client() as files:
        for name in ("one", "two"):
            async with files.open(name, "w") as file:
                await file.write(name)
        with pytest.raises(asyncssh.SFTPError, match="exists"):  # version 3 replaces nothing
            await files.rename("one", "two")
        await files.posix_rename("one", "two")
        async with files.open("two") as file:
            assert await file.read() == "one"
        await files.symlink("two", "link")
        assert (await files.readlink("link"), await files.islink("link")) == ("two", True)
        assert await files.realpath("link") == "/root/two"
        await files.chown("two", 12, 34)
        await files.chmod("two", 0o4711)
        found = await files.stat("link")
        assert (found.uid, found.gid, (found.permissions or 0) & 0o7777) == (12, 34, 0o4711)
        await files.mkdir("directory")
        with pytest.raises(asyncssh.SFTPError, match="not empty"):
            await files.rmdir("/root")
        assert {"directory", "link", "two", ".", ".."} <= set(await files.listdir("/root"))
        assert (await files.statvfs("/")).bavail > 0
        await files.rmdir("directory")
        for name in ("link", "two"):
            await files.remove(name)


def test_listings_say_who_and_when(client: Client) -> None:
    client.out("m@vmgr", "mkdir -p l; touch -d 2001-02-03 l/old; chown daemon:33 l/old")
    old = next(line for line in sftp(client, "ls -l l").split("\n") if line.endswith("old"))
    assert old.split()[0] == "-rw-r--r--"
    assert old.split()[2] == "daemon"
    assert "Feb  3  2001" in old


@pytest.fixture(scope="module")
def tools(client: Client) -> Client:
    """The machine has this computer's rsync and git, if it can run them."""
    programs = [shutil.which(name) for name in ("rsync", "git")]
    if None in programs:
        pytest.skip("rsync or git is not installed here")
    needed: set[str] = set()
    for program in programs:
        assert program
        lines = client.run("ldd", program).stdout.decode().split()
        needed |= {program, *(word for word in lines if word.startswith("/"))}
    packed = client.run("tar", "--create", "--dereference", "--absolute-names", *sorted(needed))
    unpack = "tar x -C / --skip-old-files && for p in upload receive; do ln -sf $(which git)"
    unpack += " /usr/local/bin/git-$p-pack; done; rsync --version >&2 && git --version >&2"
    done = client.ssh("m@vmgr", unpack, input=packed.stdout)
    if done.returncode != 0:
        pytest.skip(f"the machine cannot run this computer's programs: {done.stderr.decode()}")
    return client


def test_rsync(tools: Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_file(source / "data", MIB)
    (source / "link").symlink_to("data")
    assert tools.run("rsync", "-a", f"{source}/", "m@vmgr:rsynced/").returncode == 0
    with (source / "data").open("r+b") as file:
        file.write(b"changed")
    again = tools.run("rsync", "-a", "--checksum", "--no-W", f"{source}/", "m@vmgr:rsynced/")
    assert again.returncode == 0, again.stderr
    assert tools.run("rsync", "-a", "m@vmgr:rsynced/", f"{tmp_path}/back/").returncode == 0
    assert sum_of(tmp_path / "back/data") == sum_of(source / "data")
    assert (tmp_path / "back/link").readlink() == Path("data")


def test_git(tools: Client, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=n@example.com", "-C", str(tmp_path))
        done = tools.run("git", *who, *arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    git("init", "-q", "-b", "main", "here")
    (tmp_path / "here/file").write_text("content")
    git("-C", "here", "add", "file")
    git("-C", "here", "commit", "-q", "-m", "first")
    tools.out("m@vmgr", "git init -q --bare there.git")
    git("-C", "here", "push", "-q", "m@vmgr:there.git", "main")
    git("clone", "-q", "-b", "main", "m@vmgr:there.git", "back")
    assert (tmp_path / "back/file").read_text() == "content"


def test_sshfs(client: Client, tmp_path: Path) -> None:
    if shutil.which("sshfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("sshfs or /dev/fuse is not there")
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = client.run("sshfs", "-F", str(client.config), "m@vmgr:/root", str(place))
    assert mounted.returncode == 0, mounted.stderr
    try:
        (place / "through").write_text("sshfs")
        (place / "through").rename(place / "renamed")
        (place / "renamed").chmod(0o600)
        with (place / "renamed").open("a") as file:
            file.write(" works")
            os.fsync(file.fileno())
    finally:
        assert client.run("fusermount", "-u", str(place)).returncode == 0
    assert client.out("m@vmgr", "cat renamed; stat -c %a renamed") == "sshfs works600\n"
