"""The CLI's client: starts the helper where needed and passes on what answers say besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmgr._version import __version__
from vmgr.cli.output import note, printable
from vmgr.client.sync import Client

if TYPE_CHECKING:
    from vmgr.client.core import Notes

__all__ = ["client"]


def client(*, launch: bool = True, timeout: float | None = None) -> Client:
    """A client for one verb.

    Args:
        launch: start the helper where none runs; otherwise calls raise HelperUnavailableError.
        timeout: seconds that the helper may stay silent; None: any time.
    """
    told: list[str] = []

    def tell(notes: Notes) -> None:
        lines = [*notes.notices]
        if notes.helper_version not in {None, __version__}:
            lines.append(
                f"the helper is version {notes.helper_version}, this command {__version__}; "
                'run "vmgr helper restart" (machines go on)'
            )
        for line in lines:
            if line not in told:
                told.append(line)
                note(f"vmgr: {printable(line)}")

    return Client(launch=launch, timeout=timeout, on_notes=tell)
