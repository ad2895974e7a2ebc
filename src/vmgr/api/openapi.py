"""The OpenAPI document, made from the same table and models that the helper and the clients use.

OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0) has no words for WebSockets: stream operations
are described as the upgrade they begin with, and `x-websocket` names their messages, whose schemas
are among the components.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from vmgr._version import __version__
from vmgr.api import hostcommands as h
from vmgr.api import models as m
from vmgr.api import streams as s
from vmgr.api.operations import API_PREFIX, OPERATIONS, Operation

__all__ = ["document"]

_REF: Final = "#/components/schemas/{name}"
_JOB_FROM_CLIENT: Final = (s.Credit, s.FlowEnd, s.Signal, s.Resize, s.Detach)
_JOB_FROM_HELPER: Final = (s.Progress, s.Started, s.Credit, s.FlowEnd, s.Exit, s.Failed)
_FIRST: Final = {"exec": s.Start, "attach": s.Attach, "run": s.Run}
_BINARY: Final = (
    "Binary messages: one byte naming the flow (0 stdin, 1 stdout, 2 stderr), then at most "
    f"{s.MAX_DATA} bytes of it."
)


def document() -> dict[str, Any]:
    """The whole document, as JSON-able values."""
    types = _all_types()
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS.values():
        item = paths.setdefault(API_PREFIX + operation.path, {})
        item[operation.method.lower()] = _describe(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vmgr",
            "version": __version__,
            "summary": "The API of the helper that owns a person's Linux machines",
            "description": "Served on a unix socket, to processes of the same user only.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {"url": "http://vmgr", "description": "the helper's unix socket; the host is ignored"}
        ],
        "paths": paths,
        "components": {"schemas": components},
    }


# -- machinery -----------------------------------------------------------------------------------


def _all_types() -> list[Any]:
    types: dict[str, Any] = {}
    used: list[Any] = [m.Error, m.Event, s.Done, s.Progress, s.Failed, *_FIRST.values()]
    used += [h.Answer, h.Question, h.Settled, *_JOB_FROM_CLIENT, *_JOB_FROM_HELPER]
    for operation in OPERATIONS.values():
        used += [operation.request, operation.response, *(p.type for p in operation.query)]
    for kind in used:
        if kind is not None:
            types[_key(kind)] = kind
    return list(types.values())


def _key(kind: Any) -> str:
    return repr(kind)


def _describe(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": n, "in": "path", "required": True, "schema": _path_schema(n)}
        for n in operation.path_parameters
    ]
    for parameter in operation.query:
        schema = dict(schema_of[_key(parameter.type)])
        if parameter.default is not None:
            schema["default"] = parameter.default
        parameters.append(
            {
                "name": parameter.name,
                "in": "query",
                "required": False,
                "description": parameter.description,
                "schema": schema,
            }
        )
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": list(operation.tags) or [_tag(operation)],
        "parameters": parameters,
        "responses": _responses(operation, schema_of),
    }
    if operation.stream is not None:
        described["x-websocket"] = _messages(operation, schema_of)
    elif operation.request is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of[_key(operation.request)]}},
        }
    return described


def _tag(operation: Operation) -> str:
    """What the operation is about: the first word of its path."""
    words: list[str] = re.findall(r"[a-z]+", operation.path.split("{")[0]) or [operation.name]
    return words[0].removesuffix("s")


def _path_schema(name: str) -> dict[str, Any]:
    if name == "job":
        return {"type": "integer", "minimum": 0}
    if name == "machine":
        return {"type": "string", "pattern": m.MACHINE_NAME_PATTERN}
    return {"type": "string", "minLength": 1}


def _responses(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    error = {
        "description": "It could not be done, and why",
        "content": {"application/json": {"schema": schema_of[_key(m.Error)]}},
    }
    if operation.stream is not None:
        return {"101": {"description": "The WebSocket is open"}, "default": error}
    if operation.response is None:
        return {"204": {"description": "Done"}, "default": error}
    content = {"application/json": {"schema": schema_of[_key(operation.response)]}}
    return {"200": {"description": "Done", "content": content}, "default": error}


def _messages(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    def any_of(*kinds: Any) -> dict[str, Any]:
        return {"oneOf": [schema_of[_key(kind)] for kind in kinds]}

    match operation.stream:
        case "job":
            return {
                "first": any_of(_FIRST[operation.name]),
                "fromClient": any_of(*_JOB_FROM_CLIENT),
                "fromServer": any_of(*_JOB_FROM_HELPER),
                "binary": _BINARY,
            }
        case "image":
            return {
                "first": any_of(operation.request),
                "fromServer": any_of(s.Progress, s.Done, s.Failed),
                "result": any_of(operation.response),
            }
        case "event":
            return {"fromServer": any_of(m.Event, s.Failed)}
        case "question":
            return {
                "fromClient": any_of(h.Answer),
                "fromServer": any_of(h.Question, h.Settled, s.Failed),
            }
        case _:
            return {"fromServer": any_of(s.Failed), "binary": _BINARY}
