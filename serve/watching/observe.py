"""The layer of the endpoint that names and times each request, and tells the observer what became of it."""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import error_response
from serve.scopestate import arrival, note, noted
from serve.watching.observer import Observer

__all__ = ["GONE", "OTHER", "Observed", "Observer", "method_of", "request_id_of"]

logger = logging.getLogger("eagleray.serve")

OTHER: Final = "other"
"""The route of a request that no route took, and a method that HTTP does not have."""
GONE: Final = 499
"""The status, as nginx counts it, of a request that was over before its answer: its client went away, or what stands
between did not want to wait any longer."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Observed:
    """Gives each request its id: the client's `x-request-id` if that is 1-128 of the characters A-Z a-z 0-9 . _ - and a
    new one otherwise. The answer carries it, and as `x-model-id` the model that answered. The time runs from the
    request's arrival, so it holds the wait for its turn, to the last byte handed to the server.

    `echoed`: a layer further out, as Ray Serve has one, already repeats the request's own `x-request-id` in the answer.
    """

    def __init__(self, app: ASGIApp, observer: Observer, *, echoed: bool = False) -> None:
        self._app = app
        self._observer = observer
        self._echoed = echoed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, was_given = request_id_of(scope)
        note(scope, "request_id", request_id)
        seen = _Seen(scope, receive, send, named=None if was_given and self._echoed else request_id.encode())
        try:
            await self._app(scope, seen.receive, seen.send)
        except asyncio.CancelledError:  # Ray Serve cancels a request when its client goes away
            seen.gone = True
            raise
        except ClientDisconnect:
            seen.gone = True
        except Exception:
            if not seen.gone:
                logger.exception("request %s failed", request_id)
                await self._answer_500(scope, seen, request_id)
        finally:
            self._tell(scope, seen, request_id)

    async def _answer_500(self, scope: Scope, seen: "_Seen", request_id: str) -> None:
        begun = bool(seen.status)
        seen.status, seen.ended = 500, time.perf_counter()
        if not begun:
            message = f"the server failed on this request: report it with the request id {request_id}"
            with contextlib.suppress(OSError):  # nobody listens
                answer = error_response(500, "internal", message, path=scope["path"])
                await answer(scope, seen.receive, seen.send)

    def _tell(self, scope: Scope, seen: "_Seen", request_id: str) -> None:
        images = str(scope["state"].get("images", ""))
        self._observer.request(
            route=_template(scope),
            method=method_of(scope),
            # An application that returns without an answer: the server makes a 500 of it.
            status=seen.status if seen.ended else GONE if seen.gone else seen.status or 500,
            seconds=(seen.ended or time.perf_counter()) - seen.started,
            model=noted(scope, "model"),
            key=noted(scope, "key"),
            request_id=request_id,
            received=seen.received,
            images=int(images) if images.isdecimal() else None,
        )


class _Seen:
    """What passes in and out of one request."""

    __slots__ = ("_named", "_receive", "_scope", "_send", "ended", "gone", "received", "started", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, named: bytes | None) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._named = named
        self.started = arrival(scope)
        self.ended = 0.0
        self.status = 0
        self.received = 0
        self.gone = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
        else:
            self.gone = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers()]}
        try:
            await self._send(message)
        except OSError:  # how ASGI says that nobody listens any more
            self.gone = True
            raise
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = time.perf_counter()

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [] if self._named is None else [(b"x-request-id", self._named)]
        model = noted(self._scope, "model")
        return [*headers, (b"x-model-id", model.encode("ascii", "replace"))] if model else headers


def method_of(scope: Scope) -> str:
    """For a metric: nobody may make up new ones."""
    method = scope["method"]
    return method if method in _METHODS else OTHER


def request_id_of(scope: Scope) -> tuple[str, bool]:
    """The id, and whether it is the client's own."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            if _REQUEST_ID.fullmatch(value):
                return value.decode(), True
            break
    return uuid.uuid4().hex, False


def _template(scope: Scope) -> str:
    """The path of the route that took the request, its parameters still in braces; never what the client sent. Without
    the prefix of an included router, and nothing of a mounted application: that is how FastAPI notes its routes."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else OTHER
