"""What the tests of the page share: the application with the page, a key before it, and a server on loopback."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import correctionroutes, pages
from serve.errors import error_response, install_error_handlers
from serve.scopestate import note
from tests.serving import free_port, plain_endpoint

KEY = "er_test-key"
_OPEN = ("/", "/docs", "/openapi.json")


def page_app(bundle: str, **settings: Any) -> FastAPI:
    """The endpoint's application with the page and corrections in it."""
    endpoint, api = plain_endpoint(bundle, **settings)
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(outer)
    outer.include_router(pages.router(endpoint))
    outer.include_router(correctionroutes.router(endpoint))
    outer.mount("/", api)
    return outer


@dataclass
class Gate:
    """Before the application: one key, a log of what came, and answers that a test wants once instead of ours."""

    app: ASGIApp
    seen: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """The request ids of what went to /predict."""
    instead: list[tuple[str, int, str, dict[str, str]]] = field(default_factory=list)
    """(path, status, code, headers), each used once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        self.seen.append(f"{scope['method']} {path}")
        note(scope, "key", "ana")
        if path == "/predict":
            self.ids.append(Headers(scope=scope)["x-request-id"])
        if path not in _OPEN and not path.startswith("/page/"):
            given = Headers(scope=scope).get("authorization")
            if given is None:
                return await error_response(401, "no_key", "give a key")(scope, receive, send)
            if given != f"Bearer {KEY}":
                return await error_response(403, "wrong_key", "not a key of ours")(scope, receive, send)
        for wanted in self.instead:
            if wanted[0] == path:
                self.instead.remove(wanted)
                await _whole_body(receive)
                return await error_response(wanted[1], wanted[2], "come back later", wanted[3])(scope, receive, send)
        return await self.app(scope, receive, send)


async def _whole_body(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


@contextlib.contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The application at an address on loopback."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
