from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.cli.main import build_parser
from vmgr.cli.parser import (
    command_of,
    environment,
    port,
    share,
    size,
    split_command,
    volume_use,
)
from vmgr.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("1024", 1024), ("1k", 1024), ("512M", 512 << 20), ("2g", 2 << 30),
     ("2GiB", 2 << 30), ("2GB", 2 << 30), ("1.5G", 3 << 29), ("1T", 1 << 40), (" 1M ", 1 << 20)],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "1e9", "1 000", "2X", "0x10", "nan", "1..5G", "9" * 400]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size(text)


def test_environment() -> None:
    assert environment("A=b=c") == ("A", "b=c")
    assert environment("A=") == ("A", "")
    assert environment("A") == ("A", None)
    for text in ("", "=x", "A=\0"):
        with pytest.raises(argparse.ArgumentTypeError):
            environment(text)


@pytest.mark.parametrize(
    ("words", "name", "command"),
    [
        (["web", "--", "ls", "-l"], "web", ["ls", "-l"]),
        (["web", "ls", "-l"], "web", ["ls", "-l"]),
        (["-it", "web", "ls", "-t"], "web", ["ls", "-t"]),
        (["web", "git", "log", "--", "file"], "web", ["git", "log", "--", "file"]),
        (["web", "--", "sh", "-c", "x", "--", "y"], "web", ["sh", "-c", "x", "--", "y"]),
        (["-e", "A=1", "web", "--", "env"], "web", ["env"]),
    ],
)
def test_the_command_is_found_dockers_way_and_after_dashes(
    words: list[str], name: str, command: list[str]
) -> None:
    ours, after = split_command(words)
    options = build_parser("exec").parse_args(ours)
    assert options.name == name
    assert command_of(options.command, after) == command


@pytest.mark.parametrize(
    ("words", "image", "command"),
    [
        ([], None, []),
        (["--", "uname", "-a"], None, ["uname", "-a"]),
        (["debian"], "debian", []),
        (["debian", "uname", "-a"], "debian", ["uname", "-a"]),
        (["--cpus", "2", "debian", "--", "uname"], "debian", ["uname"]),
        (["--rm", "-it", "--memory", "2G", "--", "sh"], None, ["sh"]),
    ],
)
def test_run_takes_an_image_or_none(
    words: list[str], image: str | None, command: list[str]
) -> None:
    ours, after = split_command(words)
    options = build_parser("run").parse_args(ours)
    assert options.image == image
    assert command_of(options.command, after) == command


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(UsageError, match="unknown argument --mem"):
        build_parser("create").parse_args(["--mem", "2G", "--", "web"])


@pytest.mark.parametrize(
    ("text", "address", "host", "guest", "protocol"),
    [
        ("8080:80", "127.0.0.1", 8080, 80, "tcp"),
        ("80", "127.0.0.1", 80, 80, "tcp"),
        ("0.0.0.0:53:5353/udp", "0.0.0.0", 53, 5353, "udp"),  # noqa: S104
        ("[::1]:8080:80", "::1", 8080, 80, "tcp"),
    ],
)
def test_ports(text: str, address: str, host: int, guest: int, protocol: str) -> None:
    read = port(text)
    assert (read.address, read.host_port, read.guest_port) == (address, host, guest)
    assert read.protocol == protocol


@pytest.mark.parametrize("text", ["", "0:80", "65536:1", "a:b", "80:80/sctp", "::1:80:80", "1:2:3"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        port(text)


@pytest.mark.parametrize(
    ("text", "volume", "path", "read_only"),
    [
        ("data", "data", None, False), ("data:ro", "data", None, True),
        ("data:/d", "data", "/d", False), ("data:/d:ro", "data", "/d", True),
        ("data:/a:b", "data", "/a:b", False),
    ],
)  # fmt: skip
def test_volumes(text: str, volume: str, path: str | None, *, read_only: bool) -> None:
    use = volume_use(text)
    assert (use.volume, use.path, use.read_only) == (volume, path, read_only)


@pytest.mark.parametrize("text", ["", ":/d", "data:d", "data:rw", "data:d:ro"])
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        volume_use(text)


@pytest.mark.parametrize(
    ("text", "host", "guest", "read_only"),
    [
        ("/a", "/a", None, False),
        ("/a:/b", "/a", "/b", False),
        ("/a:/b:ro", "/a", "/b", True),
        ("/a:ro", "/a", None, True),
        ("/a:rw", "/a", None, False),
        ("/a:b:/c", "/a:b", "/c", False),
        ("/a,b c='\"\n:/é", "/a,b c='\"\n", "/é", False),
    ],
)
def test_shares(text: str, host: str, guest: str | None, *, read_only: bool) -> None:
    found = share(text)
    assert (found.host, found.guest, found.read_only) == (host, guest, read_only)


def test_a_shares_path_here_may_be_relative(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "with:colon").mkdir()
    monkeypatch.chdir(tmp_path)
    assert share(".").host == str(tmp_path)
    assert share("with:colon").host == str(tmp_path / "with:colon")
    for text in ("x:relative", ":/b", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            share(text)
