"""HTTP on the helper's unix socket: routing by the table of operations, errors as bodies.

Who may connect: processes of this user (and nobody else, root included only when it is the user),
checked by SO_PEERCRED on every request besides the socket's mode and its 0700 directory.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from aiohttp import WSMsgType, web

from vmgr._version import __version__
from vmgr.api.models import Error, ErrorBody
from vmgr.api.operations import API_PREFIX, OPERATIONS, Operation, Parameter
from vmgr.errors import NotFoundError, UsageError, VmgrError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Call",
    "Endpoints",
    "error_body",
    "make_application",
    "peer_uid",
    "receive_text",
    "serve",
]

MAX_BODY: Final = 1 << 20
MAX_MESSAGE: Final = 1 << 20
NOTICE_HEADER: Final = "Vmgr-Notice"
VERSION_HEADER: Final = "Vmgr-Version"
_PEERCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid; see unix(7)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One request, decoded by its operation."""

    operation: Operation
    path: Mapping[str, str]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None


class Endpoints(Protocol):
    """What `make_application` routes to: besides these, a method per operation, named like it.

    Plain operations are `async def name(self, call) -> body`; streams are
    `async def name(self, call, socket) -> None`.
    """

    async def take_notices(self) -> list[str]:
        """Lines the person must be told once, which go out with the next answer."""

    def failed(self, error: BaseException) -> None:
        """Told of an error that no handler expected."""

    async def openapi(self) -> dict[str, Any]:
        """The API's own description."""


def error_body(error: VmgrError) -> ErrorBody:
    """An error as it goes over the wire."""
    return ErrorBody(
        code=error.code, message=error.message, next_step=error.next_step, details=error.details
    )


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    uid: int = _PEERCRED.unpack(credentials)[1]
    return uid


def make_application(endpoints: Endpoints) -> web.Application:
    """The application that serves `endpoints` under /v1."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_guard(endpoints)])
    for operation in OPERATIONS.values():
        method = getattr(endpoints, operation.name)
        handler = (
            _stream_handler(operation, method, endpoints)
            if operation.stream
            else _plain_handler(operation, method)
        )
        app.router.add_route(operation.method, API_PREFIX + operation.path, handler)

    async def openapi(_request: web.Request) -> web.Response:
        return _answer(await endpoints.openapi())

    app.router.add_get(f"{API_PREFIX}/openapi.json", openapi)
    return app


async def serve(app: web.Application, listening: socket.socket) -> web.AppRunner:
    """Serve on a listening socket; `cleanup()` of the result ends it."""
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=2)
    await runner.setup()
    await web.SockSite(runner, listening, backlog=128).start()
    return runner


# -- machinery -----------------------------------------------------------------------------------


def _answer(body: Any, status: int = 200) -> web.Response:
    if body is None:
        return web.Response(status=204)
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


def _guard(endpoints: Endpoints) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        transport = request.transport
        connection = None if transport is None else transport.get_extra_info("socket")
        if connection is None or peer_uid(connection) != os.getuid():
            return web.Response(status=403)
        try:
            response: web.StreamResponse = await handler(request)
        except VmgrError as error:
            response = _answer(Error(error=error_body(error)), error.http_status)
        except web.HTTPException as error:
            problem: VmgrError
            if isinstance(error, web.HTTPNotFound | web.HTTPMethodNotAllowed):
                problem = NotFoundError(f"there is no operation {request.method} {request.path}")
            else:
                problem = UsageError(f"the request is not acceptable: {error.reason}")
            response = _answer(Error(error=error_body(problem)), error.status)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            endpoints.failed(error)
            raise
        if not response.prepared:
            await _add_headers(endpoints, response)
        return response

    return guard


async def _add_headers(endpoints: Endpoints, response: web.StreamResponse) -> None:
    """What every answer tells: our version, and once what the person should know."""
    response.headers[VERSION_HEADER] = __version__
    if notices := await endpoints.take_notices():
        response.headers[NOTICE_HEADER] = " | ".join(notices).replace("\n", " ")


def _decode_call(operation: Operation, request: web.Request, body: bytes) -> Call:
    query = {p.name: _query_value(p, request.query.get(p.name)) for p in operation.query}
    decoded = None
    if operation.request is not None and operation.stream is None:
        try:
            decoded = msgspec.json.decode(body or b"{}", type=operation.request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"the request's body is not acceptable: {error}") from None
    return Call(operation, dict(request.match_info), query, decoded)


def _query_value(parameter: Parameter, text: str | None) -> Any:
    if text is None:
        return parameter.default
    try:
        return msgspec.convert(text, parameter.type, strict=False)
    except msgspec.ValidationError:
        raise UsageError(
            f"the parameter {parameter.name} is not of type {parameter.type.__name__}"
        ) from None


def _plain_handler(operation: Operation, method: Any) -> Any:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            body = await request.read()
        except web.RequestPayloadError as error:
            raise UsageError(f"the request's body is not acceptable: {error}") from None
        return _answer(await method(_decode_call(operation, request, body)))

    return handle


def _stream_handler(operation: Operation, method: Any, endpoints: Endpoints) -> Any:
    async def handle(request: web.Request) -> web.StreamResponse:
        call = _decode_call(operation, request, b"")
        socket_ = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE,
            compress=False,
            autoping=True,
            # A client's goodbye is answered once what it had begun has been undone.
            autoclose=False,
            writer_limit=1 << 18,
        )
        await _add_headers(endpoints, socket_)
        if not socket_.can_prepare(request).ok:
            raise UsageError(f"{request.path} is a WebSocket", next_step="connect with an upgrade")
        await socket_.prepare(request)
        try:
            await method(call, socket_)
        finally:
            await socket_.close()
        return socket_

    return handle


async def receive_text(socket_: web.WebSocketResponse) -> str | None:
    """The next text message, None when the client has gone.

    Raises:
        UsageError: it sent something else.
    """
    message = await socket_.receive()
    if message.type is WSMsgType.TEXT:
        text: str = message.data
        return text
    if message.type in {WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR}:
        return None
    raise UsageError("the first message of a stream is text")
