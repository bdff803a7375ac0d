"""What the tests of watching share: an observer, small applications to be watched, and the counts by name."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ApiError, install_error_handlers
from serve.scopestate import note
from serve.watching.meters import MemorySink
from serve.watching.observe import Observer
from tests.asgicalls import Reply, call

Numbers = dict[tuple[str, ...], float]


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def observer(sink: MemorySink) -> Iterator[Observer]:
    observer = Observer(sink)
    yield observer
    observer.close()


def counted(observer: Observer, sink: MemorySink, meter: str) -> Numbers:
    """label values -> number, of one series."""
    observer.flush()
    name = f"eagleray_serve_{meter}"
    return {
        labels: number for (found, *rest), number in sink.numbers.items() if found == name for labels in [tuple(rest)]
    }


def answering(
    status: int = 200, *, before: Callable[[Scope], None] = lambda _: None, body: tuple[bytes, ...] = (b"{}",)
) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before(scope)
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        for number, part in enumerate(body):
            await send({"type": "http.response.body", "body": part, "more_body": number + 1 < len(body)})

    return app


def asked(app: ASGIApp, method: str = "POST", target: str = "/predict", **options: Any) -> Reply:
    return asyncio.run(call(app, method, target, **options))


def small_api() -> FastAPI:
    api, router = FastAPI(), APIRouter()
    install_error_handlers(api)

    @router.post("/v1/models/{name}:predict")
    async def predict(request: Request, name: str) -> dict[str, str]:
        note(request.scope, "model", "m1")
        note(request.scope, "key", "ana")
        request.scope["state"]["images"] = "2"
        await request.body()
        return {"name": name}

    @router.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError("a secret of the server")

    @router.get("/refuses")
    async def refuses() -> None:
        raise ApiError(503, "not_ready", "try again in a few seconds")

    @router.post("/reads")
    async def reads(request: Request) -> None:
        await request.body()

    api.include_router(router)
    return api


def told(observer: Observer, status: int = 200, seconds: float = 0.01, **changed: Any) -> None:
    usual: dict[str, Any] = {"route": "/predict", "method": "POST", "model": "m1", "key": "ana", "request_id": "r1"}
    observer.request(**{**usual, "received": 5, **changed}, status=status, seconds=seconds)
