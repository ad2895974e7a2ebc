from __future__ import annotations

import json

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from vmgr.api.openapi import document
from vmgr.api.operations import OPERATIONS, Operation


def test_it_is_a_valid_openapi_document() -> None:
    # As it goes over the wire, where keys are strings.
    OpenAPIV31SpecValidator(json.loads(msgspec.json.encode(document()))).validate()


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_operation_is_in_it(operation: Operation) -> None:
    described = document()["paths"]["/v1" + operation.path][operation.method.lower()]
    assert described["operationId"] == operation.name
    named = {p["name"] for p in described["parameters"]}
    assert named == {*operation.path_parameters, *(p.name for p in operation.query)}
    assert ("x-websocket" in described) == (operation.stream is not None)
    assert ("requestBody" in described) == (
        operation.request is not None and operation.stream is None
    )


def test_no_other_operation_is_in_it() -> None:
    found = [o["operationId"] for path in document()["paths"].values() for o in path.values()]
    assert sorted(found) == sorted(OPERATIONS)


def test_every_reference_leads_somewhere() -> None:
    text = msgspec.json.encode(document()).decode()
    schemas = document()["components"]["schemas"]
    for part in text.split('"$ref":"')[1:]:
        reference = part.partition('"')[0]
        assert reference.removeprefix("#/components/schemas/") in schemas


def test_what_models_require_is_required() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["Event"]["required"] == ["seq", "at", "kind"]
    assert schemas["Start"]["properties"]["type"] == {"enum": ["start"]}
