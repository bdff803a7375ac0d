"""Each request has an id, a time and a place in the counts, whatever becomes of it."""

import asyncio
import json

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.scopestate import note
from serve.watching.meters import MemorySink
from serve.watching.observe import Observed, Observer
from tests.asgicalls import call, scope_of
from tests.observing import answering, asked, counted, observer, sink, small_api

__all__ = ["observer", "sink"]


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 128, "0123456789abcdef0123456789abcdef"])
def test_a_clients_id_is_kept_where_it_is_harmless(observer: Observer, given: str) -> None:
    seen: list[str] = []
    app = Observed(answering(before=lambda scope: seen.append(scope["state"]["request_id"])), observer)
    reply = asked(app, headers=[("x-request-id", given)])
    assert reply.headers["x-request-id"] == given
    assert seen == [given]


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", 'a"b', "<b>", "å", "a:b", "{}", "a\x1b[31m"])
def test_any_other_id_is_replaced(observer: Observer, given: str) -> None:
    replies = [asked(Observed(answering(), observer), headers=[("x-request-id", given)]) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert ids[0] != ids[1]
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in ids)


def test_an_answer_has_its_id_once_where_ray_repeats_the_clients(observer: Observer) -> None:
    app = Observed(answering(), observer, echoed=True)
    assert "x-request-id" not in asked(app, headers=[("x-request-id", "mine")]).headers
    assert len(asked(app, headers=[("x-request-id", "m i n e")]).headers["x-request-id"]) == 32


def test_an_answer_names_the_model_that_gave_it(observer: Observer) -> None:
    app = Observed(answering(before=lambda scope: note(scope, "model", "abc123")), observer)
    reply = asked(app)
    assert reply.headers["x-model-id"] == "abc123"
    assert reply.headers["content-type"] == "text/plain"
    assert "x-model-id" not in asked(Observed(answering(), observer)).headers


def test_requests_are_counted_by_the_route_that_took_them(observer: Observer, sink: MemorySink) -> None:
    app = Observed(small_api(), observer)
    for name in ("a", "b", "c" * 500):
        assert asked(app, target=f"/v1/models/{name}:predict", body=b"12345").status == 200
    for method, target in (("GET", "/v1/models/a:predict"), ("GET", "/nothing/here"), ("BREW", "/fails")):
        asked(app, method, target)
    assert asked(app, "GET", "/refuses").status == 503
    template = "/v1/models/{name}:predict"
    assert counted(observer, sink, "requests") == {
        ("m1", template, "200", "POST"): 3,
        ("", template, "405", "GET"): 1,
        ("", "other", "404", "GET"): 1,
        ("", "/fails", "405", "other"): 1,
        ("", "/refuses", "503", "GET"): 1,
    }
    assert counted(observer, sink, "key_requests")["ana", "200"] == 3
    assert counted(observer, sink, "received_bytes") == {(template,): 15}
    assert counted(observer, sink, "latency_seconds_count")[template, "m1", "2xx"] == 3


def test_every_byte_of_a_body_is_counted_also_without_an_announced_length(observer: Observer, sink: MemorySink) -> None:
    chunks = [b"x" * 1000, b"", b"y" * 24]

    async def receive() -> Message:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    asked(Observed(answering(), observer), receive=receive)
    assert counted(observer, sink, "received_bytes") == {("other",): 1024}


def test_an_unexpected_exception_is_a_500_under_the_requests_id(
    observer: Observer, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    reply = asked(Observed(small_api(), observer), "GET", "/fails", headers=[("x-request-id", "find-me")])
    assert (reply.status, reply.code) == (500, "internal")
    assert b"find-me" in reply.body
    assert b"secret" not in reply.body
    assert "find-me" in caplog.text
    assert counted(observer, sink, "requests") == {("", "/fails", "500", "GET"): 1}


def broken(error: BaseException, *, after: tuple[Message, ...] = ()) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in after:
            await send(message)
        raise error

    return app


START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def test_an_exception_of_the_layers_between_is_answered_too(
    observer: Observer, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    reply = asked(Observed(broken(KeyError("secret")), observer), headers=[("x-request-id", "find-me")])
    assert (reply.status, reply.code, reply.headers["x-request-id"]) == (500, "internal", "find-me")
    assert "secret" not in reply.body.decode()
    assert "find-me" in caplog.text
    other = asked(Observed(broken(KeyError("secret")), observer), target="/v2/models/m/infer")
    assert isinstance(json.loads(other.body)["error"], str)  # in the form of its path
    late = asked(Observed(broken(KeyError("secret"), after=(START,)), observer))
    assert (late.status, late.body) == (200, b"")  # it had begun: the server cuts the connection
    assert counted(observer, sink, "requests") == {("", "other", "500", "POST"): 3}


async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """An application that does not answer."""


async def vanished() -> Message:
    return {"type": "http.disconnect"}


async def deaf(_message: Message) -> None:
    raise OSError("nobody listens")


@pytest.mark.parametrize("app", [broken(ClientDisconnect()), small_api()], ids=["raised", "swallowed"])
def test_a_client_that_goes_away_is_counted_as_gone(observer: Observer, sink: MemorySink, app: ASGIApp) -> None:
    asyncio.run(Observed(app, observer)(scope_of("POST", "/reads"), vanished, deaf))
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["499"]


def test_an_answer_that_cannot_be_sent_is_counted_as_gone(
    observer: Observer, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(Observed(answering(), observer)(scope_of("POST", "/"), body_at_once, deaf))
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["499"]
    assert not caplog.text


async def body_at_once() -> Message:
    return {"type": "http.request", "body": b""}


def test_a_request_that_is_cancelled_is_counted_as_gone(observer: Observer, sink: MemorySink) -> None:
    """As Ray Serve does it when a client goes away, and when a request takes too long."""

    async def run() -> None:
        started = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            started.set()
            await asyncio.sleep(3600)

        task = asyncio.create_task(call(Observed(app, observer), "POST", "/"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["499"]


def test_an_application_that_does_not_answer_counts_as_a_500(observer: Observer, sink: MemorySink) -> None:
    asked(Observed(nothing, observer))
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["500"]


def test_a_client_that_goes_after_its_answer_has_it(observer: Observer, sink: MemorySink) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answering(body=(b"a", b"b"))(scope, receive, send)
        await receive()

    arriving: list[Message] = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return arriving.pop(0)

    assert asked(Observed(app, observer), receive=receive).body == b"ab"
    assert not arriving
    assert [code for _, _, code, _ in counted(observer, sink, "requests")] == ["200"]


def test_what_is_no_request_passes_by(observer: Observer, sink: MemorySink) -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(Observed(app, observer)({"type": "lifespan"}, vanished, deaf))
    assert passed == ["lifespan"]
    assert counted(observer, sink, "requests") == {}
