from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.api import models as m
from vmgr.api.operations import OPERATIONS
from vmgr.client.core import MAX_ANSWER, Exchange, target_of
from vmgr.errors import HelperUnavailableError, NotFoundError, UsageError, VmgrError

VERSION = b'{"version":"1","api":"v1","agent_protocol":1,"python":"3.11","qemu":null}'


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def test_a_request_names_its_operation_and_nothing_is_left_to_chance() -> None:
    exchange = Exchange("machine_remove", {"machine": "web"}, {"force": True})
    head = exchange.outgoing.decode()
    assert head.startswith("DELETE /v1/machines/web?force=true HTTP/1.1\r\n")
    assert "Connection: close\r\n" in head


def test_a_body_is_the_models_json() -> None:
    exchange = Exchange("config_set", {"key": "a.b"}, body=m.SetConfig(value="2G"))
    head, _, body = exchange.outgoing.partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /v1/config/a.b HTTP/1.1\r\n")
    assert body == b'{"value":"2G"}'


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("web", "/v1/machines/web"),
        ("a/b", "/v1/machines/a%2Fb"),
        ("a?b#c", "/v1/machines/a%3Fb%23c"),
        ("a b\r\nX: y", "/v1/machines/a%20b%0D%0AX%3A%20y".replace("%3A", ":")),
        ("ü", "/v1/machines/%C3%BC"),
    ],
)
def test_what_a_person_typed_cannot_leave_its_place_in_the_path(value: str, target: str) -> None:
    assert target_of(OPERATIONS["machine_info"], {"machine": value}, {}) == target


@pytest.mark.parametrize("value", ["", ".", ".."])
def test_names_that_would_change_the_path_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=f'"{value}" is not a machine'):
        target_of(OPERATIONS["machine_info"], {"machine": value}, {})


def test_none_leaves_a_query_parameter_out() -> None:
    query = {"source": "vmm", "follow": False, "tail": None}
    target = target_of(OPERATIONS["machine_logs"], {"machine": "web"}, query)
    assert target == "/v1/machines/web/logs?source=vmm&follow=false"


@given(st.lists(st.integers(1, 400), max_size=20))
def test_an_answer_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    data = answer(VERSION, headers="Vmgr-Notice: look out\r\nVmgr-Version: 9\r\n")
    exchange = Exchange("version")
    done = False
    for cut in [*cuts, len(data)]:
        if data:
            done = exchange.receive(data[:cut])
            data = data[cut:]
    assert done
    assert exchange.result(m.Version).agent_protocol == 1
    assert exchange.notes.notices == ["look out"]
    assert exchange.notes.helper_version == "9"


def test_an_error_comes_back_as_its_class_with_its_facts() -> None:
    exchange = Exchange("machine_info", {"machine": "web"})
    body = (
        b'{"error":{"code":"not-found","message":"there is no machine web",'
        b'"next_step":"see them","details":{"machine":"web"}}}'
    )
    assert exchange.receive(answer(body, "404 Not Found"))
    with pytest.raises(NotFoundError) as caught:
        exchange.result(m.MachineInfo)
    assert caught.value.message == "there is no machine web"
    assert caught.value.next_step == "see them"
    assert caught.value.details == {"machine": "web"}


def test_an_error_without_a_body_of_ours_is_still_an_error() -> None:
    exchange = Exchange("version")
    assert exchange.receive(answer(b"<html>", "403 Forbidden"))
    with pytest.raises(VmgrError, match="HTTP status 403"):
        exchange.result(m.Version)


def test_an_answer_of_another_version_is_said_to_be_one() -> None:
    exchange = Exchange("version")
    assert exchange.receive(answer(b'{"hello": 1}'))
    with pytest.raises(HelperUnavailableError, match="is not understood"):
        exchange.result(m.Version)


def test_no_content_is_none() -> None:
    exchange = Exchange("job_forget", {"machine": "web", "job": 1})
    assert exchange.receive(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert exchange.result(type(None)) is None


def test_a_helper_that_ends_amid_its_answer() -> None:
    exchange = Exchange("version")
    assert not exchange.receive(answer(VERSION)[:-5])
    with pytest.raises(HelperUnavailableError, match="closed the connection before it answered"):
        exchange.receive(b"")


def test_what_is_no_http_is_no_helper() -> None:
    exchange = Exchange("version")
    with pytest.raises(HelperUnavailableError, match="does not speak its protocol"):
        exchange.receive(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def test_an_endless_answer_is_not_kept() -> None:
    exchange = Exchange("version")
    exchange.receive(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    piece = bytes(1 << 20)
    for _ in range(MAX_ANSWER // len(piece)):
        assert not exchange.receive(piece)
    with pytest.raises(HelperUnavailableError, match="too long"):
        exchange.receive(piece)
