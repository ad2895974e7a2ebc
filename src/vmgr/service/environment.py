"""The part of an environment that the helper takes over, whoever starts it.

Who starts the helper first must not decide how it behaves for everyone after, so only what names
the person's directories, language, proxies, certificates and session bus is passed on, and what
the service manager tells it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SERVICE_MANAGER", "helper_environment", "is_passed_on", "lasting_environment"]

_PASSED_ON: Final = frozenset({
    "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER",
    "ALL_PROXY", "FTP_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY",
    "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE",
    "DBUS_SESSION_BUS_ADDRESS",
})  # fmt: skip
_PASSED_ON_PREFIXES: Final = ("LC_", "VMGR_", "XDG_")
SERVICE_MANAGER: Final = frozenset({
    "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID",
    "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC",
})  # fmt: skip
"""What systemd sets for one service, see systemd.exec(5)."""
# What systemd's user manager sets for all its services itself, or what is of one session only.
_NOT_LASTING: Final = frozenset({
    "DBUS_SESSION_BUS_ADDRESS", "HOME", "LOGNAME", "SHELL", "USER", "XDG_RUNTIME_DIR",
})  # fmt: skip
_LASTING_XDG: Final = frozenset({
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
})  # fmt: skip


def is_passed_on(name: str) -> bool:
    """Whether the helper's environment may have a variable of that name."""
    return (
        name.upper() in _PASSED_ON
        or name.startswith(_PASSED_ON_PREFIXES)
        or name in SERVICE_MANAGER
    )


def helper_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of a caller's environment that a helper which it starts gets."""
    return {
        name: value
        for name, value in environ.items()
        if is_passed_on(name) and name not in SERVICE_MANAGER
    }


def lasting_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a service must be given to find the same directories, proxies and programs."""
    return {
        name: value
        for name, value in sorted(helper_environment(environ).items())
        if name not in _NOT_LASTING and (not name.startswith("XDG_") or name in _LASTING_XDG)
    }
