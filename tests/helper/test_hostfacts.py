"""What this computer tells its machines: read from files and variables as they are found."""

from __future__ import annotations

import shutil
import ssl
from typing import TYPE_CHECKING

import pytest

from vmgr.helper.hostfacts import certificates, git_identity, proxies, timezone

if TYPE_CHECKING:
    from pathlib import Path

DER = b"0\x82" + bytes(range(200))
PEM = ssl.DER_cert_to_PEM_cert(DER)
KEY = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
HOST = "host.vmgr.internal"


class TestCertificates:
    def test_only_certificates_are_taken(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub/corp.crt").write_text(f"# ours\r\n{KEY}{PEM}{PEM}")
        (tmp_path / "notes.txt").write_text(PEM)
        (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\n!\n")
        (tmp_path / "huge.crt").write_text(PEM * 1_000)
        found = certificates([tmp_path, tmp_path / "none"])
        assert list(found.values()) == [PEM]
        assert "PRIVATE" not in "".join(found.values())

    def test_there_are_not_too_many(self, tmp_path: Path) -> None:
        for number in range(100):
            text = ssl.DER_cert_to_PEM_cert(DER + bytes([number]))
            (tmp_path / f"{number}.crt").write_text(text)
        assert len(certificates([tmp_path])) == 64


class TestTimezone:
    def test_its_name_is_where_the_link_leads(self, tmp_path: Path) -> None:
        zone = tmp_path / "zoneinfo/Europe/Berlin"
        zone.parent.mkdir(parents=True)
        zone.write_bytes(b"TZif2 and so on")
        link = tmp_path / "localtime"
        link.symlink_to(zone)
        found = timezone(link)
        assert found is not None
        assert (found.name, found.content) == ("Europe/Berlin", b"TZif2 and so on")
        zone.write_bytes(b"something else")
        assert timezone(link) is None

    def test_one_without_a_name_is_none(self, tmp_path: Path) -> None:
        assert timezone(tmp_path / "none") is None
        (tmp_path / "localtime").write_bytes(b"TZif2")
        assert timezone(tmp_path / "localtime") is None


class TestProxies:
    def test_they_are_passed_on_in_both_spellings(self) -> None:
        environ = {"HTTPS_PROXY": "http://me:pw@proxy.example:8080", "no_proxy": "a.example"}
        found = proxies(environ, [], HOST)
        assert found.variables["https_proxy"] == environ["HTTPS_PROXY"]
        assert found.variables["HTTPS_PROXY"] == environ["HTTPS_PROXY"]
        assert "http_proxy" not in found.variables
        assert found.variables["no_proxy"].split(",")[0] == "a.example"
        assert ".vmgr.internal" in found.variables["no_proxy"].split(",")

    def test_one_on_the_loopback_is_not_reached(self) -> None:
        for host in ("localhost", "127.0.0.1", "127.8.9.1", "[::1]"):
            found = proxies({"http_proxy": f"http://{host}:3128/"}, [], HOST)
            assert found.variables == {}
            assert found.unreachable == (f"{host.strip('[]')}:3128",)

    def test_unless_its_port_is_open_to_the_machine(self) -> None:
        found = proxies({"http_proxy": "http://u:p@localhost:3128/"}, [3128], HOST)
        assert found.variables["http_proxy"] == f"http://u:p@{HOST}:3128/"
        assert found.unreachable == ()

    def test_nonsense_is_left_out(self) -> None:
        environ = {"http_proxy": "http://[", "https_proxy": "http://x:99999999", "all_proxy": "\n"}
        assert proxies(environ, [], HOST).variables == {}
        assert proxies({"no_proxy": "x"}, [], HOST).variables == {}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
async def test_git_is_asked_who_this_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert await git_identity() == {}
    included = "[user]\n\temail = ann@example.org\n"
    (tmp_path / "more").write_text(included)
    text = '[include]\n\tpath = ~/more\n[user]\n\tname = Ann "A" Ä\n\tsigningkey = 1\n'
    (tmp_path / ".gitconfig").write_text(text)
    assert await git_identity() == {"name": "Ann A Ä", "email": "ann@example.org"}
