from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr.artifact.sources import Source, debian_sources, parse_deb822, parse_one_line, read_sources

if TYPE_CHECKING:
    from pathlib import Path

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
# in between
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://src.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://inline.example/debian
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_deb822_gives_enabled_binary_sources_with_their_options() -> None:
    first, second = parse_deb822(DEB822)
    assert first.uris == ("http://mirror.example/debian",)
    assert first.suites == ("bookworm", "bookworm-updates", "bookworm-backports")
    assert first.components == ("main", "contrib")
    assert first.option("signed-by") == "/usr/share/keyrings/debian-archive-keyring.gpg"
    key = second.option("Signed-By")
    assert key is not None
    assert key.splitlines()[1:3] == [" -----BEGIN PGP PUBLIC KEY BLOCK-----", " ."]


def test_deb822_is_written_as_it_was_read() -> None:
    for source in parse_deb822(DEB822):
        assert parse_deb822(source.deb822()) == [source]


def test_one_line_style_gives_the_same() -> None:
    text = (
        "# deb http://no.example/debian bookworm main\n"
        "deb-src http://no.example/debian bookworm main\n"
        "deb [arch=amd64,arm64 signed-by=/k.gpg] http://a.example/debian bookworm main new # x\n"
        "deb http://broken.example/\n"
    )
    assert parse_one_line(text) == [
        Source(
            ("http://a.example/debian",),
            ("bookworm",),
            ("main", "new"),
            (("Architectures", "amd64 arm64"), ("Signed-By", "/k.gpg")),
        )
    ]


def test_only_suites_of_the_release_itself_are_debian_candidates() -> None:
    sources = [
        Source(("http://d.example",), ("bookworm", "bookworm-backports"), ("main",)),
        Source(("http://s.example",), ("stable-security", "trixie"), ("main",)),
        Source(("http://browser.example",), ("nodistro",), ("main",)),
        Source(("http://flat.example",), ("bookworm",), ()),
    ]
    assert [(s.uris[0], s.suites) for s in debian_sources(sources, "bookworm")] == [
        ("http://d.example", ("bookworm",)),
        ("http://s.example", ("stable-security",)),
    ]


def test_all_files_of_an_apt_directory_are_read(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example x main\n")
    (parts / "b.list").write_text("deb http://b.example x main\n")
    (parts / "c.sources").write_text("Types: deb\nURIs: http://c.example\nSuites: x\n")
    (parts / "d.sources.disabled").write_text("Types: deb\nURIs: http://d.example\nSuites: x\n")
    (parts / "e.list").mkdir()
    found = [source.uris[0] for source in read_sources(tmp_path)]
    assert found == ["http://a.example", "http://b.example", "http://c.example"]
