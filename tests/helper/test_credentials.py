"""What machines know of this computer: placed, kept up to date, and never over the person's own."""

from __future__ import annotations

import secrets
import shutil

import pytest
from tests.conftest import SMALL, Home

from vmgr.helper.hostfacts import certificates, timezone

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git"),
]

LOOPBACK = "http://127.0.0.1:3128"
PROXY = "http://me:pw@proxy.example:8080"


@pytest.fixture(scope="module")
def home(quick_module_home: Home) -> Home:
    home = quick_module_home
    home.environment = {
        name: value for name, value in home.environment.items() if "proxy" not in name.lower()
    } | {"http_proxy": LOOPBACK, "https_proxy": PROXY}
    identify(home, "Ann")
    for what in ("git", "timezone", "proxies"):
        home.vmgr("config", "set", f"host.{what}", "on")
    return home


@pytest.fixture(scope="module")
def web(home: Home) -> str:
    return started(home)


def started(home: Home, *options: str) -> str:
    name = f"m{secrets.token_hex(3)}"
    home.vmgr("create", *SMALL, "--image", "debian-minimal", *options, "--start", name)
    return name


def identify(home: Home, name: str) -> None:
    text = f"[user]\n\tname = {name}\n\temail = ann@example.org\n"
    (home.root / "home/.gitconfig").write_text(text)


def said(home: Home, *words: str) -> str:
    return home.vmgr(*words).stdout.decode()


def renewed(home: Home, what: str, value: str) -> None:
    """Change a setting, after which the machines that run are told; a command waits for that."""
    home.vmgr("config", "set", f"host.{what}", value)


def test_a_machine_knows_who_this_is_and_where(home: Home, web: str) -> None:
    config = said(home, "exec", web, "--", "cat", "/etc/gitconfig")
    assert 'name = "Ann"' in config
    assert 'email = "ann@example.org"' in config
    if (zone := timezone()) is not None:
        script = "readlink /etc/localtime || cat /etc/localtime"
        found = home.vmgr("exec", web, "--", "sh", "-c", script).stdout
        assert found in {f"/usr/share/zoneinfo/{zone.name}\n".encode(), zone.content}


def test_it_is_kept_up_to_date_until_the_person_changes_it(home: Home, web: str) -> None:
    read = ("exec", web, "--", "cat", "/etc/gitconfig")
    renewed(home, "git", "off")
    assert home.vmgr(*read, check=False).returncode != 0
    renewed(home, "git", "on")
    assert "Ann" in said(home, *read)
    home.vmgr("exec", web, "--", "sh", "-c", "echo '# mine' >> /etc/gitconfig")
    mine = said(home, *read)
    renewed(home, "git", "off")
    assert said(home, *read) == mine
    renewed(home, "git", "on")
    assert said(home, *read) == mine


def test_a_change_on_this_computer_is_noticed(home: Home, web: str) -> None:
    home.vmgr("exec", web, "--", "rm", "/etc/gitconfig", "/var/lib/vmgr/placed")
    renewed(home, "git", "off")
    renewed(home, "git", "on")
    wait = "until grep -q Zoe /etc/gitconfig; do sleep 0.1; done"
    with home.start("exec", "-n", web, "--", "sh", "-c", wait) as waiting:
        identify(home, "Zoe")
        assert waiting.wait(60) == 0
    identify(home, "Ann")


def test_proxies_are_variables_of_commands(home: Home, web: str) -> None:
    done = home.vmgr("exec", web, "--", "env")
    environment = done.stdout.decode().splitlines()
    assert f"https_proxy={PROXY}" in environment
    assert f"HTTPS_PROXY={PROXY}" in environment
    # What a machine cannot reach is not given to it, and that is said, once.
    assert not any(LOOPBACK in line for line in environment)
    assert "127.0.0.1:3128 is on this computer's loopback" in home.logs()
    assert said(home, "exec", "-e", "https_proxy=x", web, "--", "printenv", "https_proxy") == "x\n"
    assert "pw@" not in home.logs()
    done = home.vmgr("run", "--net", "none", *SMALL, "debian-minimal", "--", "env")
    assert b"proxy" not in done.stdout


@pytest.mark.skipif(not certificates(), reason="this computer has no certificates of its own")
def test_certificates_are_trusted_at_once(home: Home) -> None:
    renewed(home, "certificates", "on")
    bundle = said(
        home, "run", *SMALL, "debian-minimal", "--", "cat", "/etc/ssl/certs/ca-certificates.crt"
    )
    renewed(home, "certificates", "off")
    assert all(pem.strip() in bundle for pem in certificates().values())
