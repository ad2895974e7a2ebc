"""HTTP/1.1 as a client of the helper speaks it, without I/O.

`Exchange` is one request and its answer. It is fed with the bytes that arrived and holds the bytes
to send; who moves them (a blocking socket, asyncio, a test) is no concern here. Each uses a
connection of
its own: on a unix socket a new connection costs less than keeping track of an old one.
`vmgr.client.websocket` is the same for streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlencode

import h11
import msgspec

from vmgr._version import __version__
from vmgr.api.models import Error, ErrorBody
from vmgr.api.operations import API_PREFIX, OPERATIONS
from vmgr.errors import HelperUnavailableError, UsageError, VmgrError, error_from_wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmgr.api.operations import Operation

__all__ = [
    "HOST",
    "MAX_ANSWER",
    "USER_AGENT",
    "Exchange",
    "Notes",
    "broken",
    "error_answer",
    "error_of",
    "target_of",
]

T = TypeVar("T")
HOST: Final = "vmgr"  # HTTP wants a Host; the unix socket has no name
NOTICE_HEADER: Final = b"vmgr-notice"
VERSION_HEADER: Final = b"vmgr-version"
MAX_ANSWER: Final = 16 * 1024**2
USER_AGENT: Final = f"vmgr/{__version__}"


def target_of(operation: Operation, path: Mapping[str, object], query: Mapping[str, object]) -> str:
    """The request target of `operation`: its path with `path` filled in, and the query string.

    Raises:
        UsageError: a path parameter is empty, which no name may be.
    """
    target = API_PREFIX + operation.path
    for name in operation.path_parameters:
        value = str(path[name])
        if value in {"", ".", ".."}:
            raise UsageError(f'"{value}" is not a {name}')
        target = target.replace("{" + name + "}", quote(value, safe=":"))
    given = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in query.items()
        if value is not None
    }
    return f"{target}?{urlencode(given)}" if given else target


def error_of(body: ErrorBody) -> VmgrError:
    """The exception that an error body describes."""
    return error_from_wire(body.code, body.message, body.next_step, body.details)


class Notes:
    """What an answer's headers tell besides the answer.

    Attributes:
        notices: lines that the person must be told once.
        helper_version: the helper's version where it says so.
    """

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.helper_version: str | None = None

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Take note of one answer's headers."""
        for name, value in headers:
            lowered = name.lower()
            if lowered == NOTICE_HEADER:
                self.notices.append(value.decode(errors="replace"))
            elif lowered == VERSION_HEADER:
                self.helper_version = value.decode(errors="replace")


class Exchange:
    """One request and its answer.

    Args:
        name: the operation, a key of `OPERATIONS`.
        path: values for the names in braces of its path.
        query: values for its query parameters; None leaves one out.
        body: its request body, a model.

    Attributes:
        outgoing: the request's bytes.
        notes: what the answer says besides.
        unanswered: not a byte of an answer has arrived.
    """

    def __init__(
        self,
        name: str,
        path: Mapping[str, object] | None = None,
        query: Mapping[str, object] | None = None,
        body: msgspec.Struct | None = None,
    ) -> None:
        self.operation = OPERATIONS[name]
        self.notes = Notes()
        self.unanswered = True
        self._connection = h11.Connection(h11.CLIENT)
        self._status = 0
        self._body = bytearray()
        self._done = False
        payload = b"" if body is None else msgspec.json.encode(body)
        headers = [
            ("Host", HOST),
            ("User-Agent", USER_AGENT),
            ("Accept", "application/json"),
            ("Connection", "close"),
        ]
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
        parts = [
            h11.Request(
                method=self.operation.method,
                target=target_of(self.operation, path or {}, query or {}),
                headers=headers,
            ),
            *([h11.Data(data=payload)] if payload else []),
            h11.EndOfMessage(),
        ]
        self.outgoing = b"".join(self._connection.send(part) or b"" for part in parts)

    def receive(self, data: bytes) -> bool:
        """Take what arrived (`b""` when the helper has closed). True when the answer is complete.

        Raises:
            HelperUnavailableError: it closed before the answer's end, or does not speak HTTP.
        """
        self.unanswered = self.unanswered and data == b""
        try:
            self._connection.receive_data(data)
            while not self._done:
                event = self._connection.next_event()
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                    self.notes.read(event.headers)
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > MAX_ANSWER:
                        raise HelperUnavailableError("the helper's answer is too long")
                elif isinstance(event, h11.EndOfMessage):
                    self._done = True
                else:
                    break
        except h11.RemoteProtocolError:
            raise broken(data) from None
        if data == b"" and not self._done:
            raise broken(data)
        return self._done

    @property
    def repeatable(self) -> bool:
        """It may be asked again: it changes nothing, and a helper that stopped did not answer."""
        return self.unanswered and self.operation.method == "GET"

    def result(self, kind: type[T]) -> T:
        """The answer's body as a `kind`, the operation's model; None where it has none.

        Raises:
            VmgrError: the one that the helper answered.
        """
        if self._status >= 400:  # noqa: PLR2004 (HTTP: from here on it is an error)
            raise error_answer(self._status, bytes(self._body))
        try:
            return msgspec.json.decode(self._body or b"null", type=kind)
        except msgspec.MsgspecError as error:
            raise HelperUnavailableError(
                f"the helper's answer is not understood: {error}",
                next_step='run "vmgr helper restart", so that both are of one version',
            ) from None


def error_answer(status: int, body: bytes) -> VmgrError:
    """The exception for an answer with an error's HTTP status."""
    try:
        return error_of(msgspec.json.decode(body, type=Error).error)
    except msgspec.MsgspecError:
        return VmgrError(
            f"the helper answered with HTTP status {status}",
            next_step='see "vmgr helper logs"',
        )


def broken(data: bytes) -> HelperUnavailableError:
    """The exception for bytes that are no protocol of ours, or for their sudden end (`b""`)."""
    if data == b"":
        return HelperUnavailableError(
            "the helper closed the connection before it answered",
            next_step='try again, and see "vmgr helper logs" if it happens again',
        )
    return HelperUnavailableError(
        "what answers on the helper's socket does not speak its protocol",
        next_step='run "vmgr helper restart"',
    )
