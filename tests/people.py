"""What the tests of the page share: the whole application with one key, a gate before it, and a server on loopback."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.application import build_asgi
from serve.door.keystore import Keys
from serve.errors import error_response
from serve.watching.meters import MemorySink
from serve.watching.observer import Observer
from tests.serving import free_port, plain_endpoint

KEY = "er_the-key-of-the-page-tests"


def guarded_app(bundle: str, **settings: Any) -> ASGIApp:
    """All layers of the endpoint, with the key `KEY` of ana."""
    endpoint, _ = plain_endpoint(bundle, **settings)
    return build_asgi(endpoint, Observer(MemorySink(), every_s=3600), Keys({"EAGLERAY_KEYS": f"ana={KEY}"}))


@dataclass
class Gate:
    """Before the application: a log of what came, and answers that a test wants once instead of the application's."""

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
        if path == "/predict":
            self.ids.append(Headers(scope=scope)["x-request-id"])
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
