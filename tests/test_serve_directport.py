"""What a replica adds to each request on its own port: what Ray reads, when the request came, and those Ray refused."""

import asyncio

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.running import directport
from serve.running.directport import Outermost
from serve.watching.meters import MemorySink
from serve.watching.observe import GONE, Observed, Observer
from tests.observing import answering, asked, counted, observer, sink

__all__ = ["observer", "sink"]

WAIT_S = 0.3


@pytest.fixture
def told(observer: Observer, monkeypatch: pytest.MonkeyPatch) -> Observer:
    monkeypatch.setattr(directport, "_observers", [])
    directport.tell(observer)
    return observer


def in_turn(app: ASGIApp) -> ASGIApp:
    """As Ray lets a request wait for its place."""

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(WAIT_S)
        await app(dict(scope), receive, send)

    return waiting


def test_a_replica_overrules_what_a_client_says_of_waiting() -> None:
    seen: list[tuple[bytes, bytes]] = []
    app = answering(before=lambda scope: seen.extend(scope["headers"]))
    asked(Outermost(app), headers=[("x-request-timeout-seconds", "99999")])
    assert dict(seen) == {b"x-request-timeout-seconds": b"0", b"x-request-disconnect-disabled": b"?1"}


def test_what_ray_refuses_is_counted(told: Observer, sink: MemorySink) -> None:
    for method in ("POST", "POST", "BREW"):
        assert asked(Outermost(answering(429)), method).status == 429
    assert counted(told, sink, "requests") == {("", "other", "429", "POST"): 2, ("", "other", "429", "other"): 1}


def test_what_reaches_the_endpoint_is_counted_once(told: Observer, sink: MemorySink) -> None:
    asked(Outermost(in_turn(Observed(answering(429), told))))
    assert counted(told, sink, "requests") == {("", "other", "429", "POST"): 1}


def test_what_only_haproxy_asks_is_not_counted(told: Observer, sink: MemorySink) -> None:
    assert asked(Outermost(answering()), "GET", "/-/healthz").status == 200
    assert counted(told, sink, "requests") == {}


def test_what_ray_fails_on_is_counted_as_the_500_that_it_becomes(told: Observer, sink: MemorySink) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asked(Outermost(failing))
    assert counted(told, sink, "requests") == {("", "other", "500", "POST"): 1}


def test_who_is_gone_before_his_turn_is_counted_as_gone(told: Observer, sink: MemorySink) -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asked(Outermost(cancelled))
    assert counted(told, sink, "requests") == {("", "other", str(GONE), "POST"): 1}


def test_the_time_of_a_request_holds_its_wait_for_a_place(told: Observer, sink: MemorySink) -> None:
    asked(Outermost(in_turn(Observed(answering(), told))))
    ((_, seconds),) = counted(told, sink, "latency_seconds_sum").items()
    assert seconds >= WAIT_S


def test_nobody_needs_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directport, "_observers", [])
    assert asked(Outermost(answering(429))).status == 429
