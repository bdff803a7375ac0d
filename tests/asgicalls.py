"""ASGI applications called as a server calls them, with every byte of the request in the test's hand."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = Sequence[tuple[str | bytes, str | bytes]]


@dataclass
class Reply:
    """What an application sent. Status 0: nothing."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def code(self) -> str:
        """The code of an error answer, whichever form its path asks for."""
        return self._error()[0]

    @property
    def message(self) -> str:
        return self._error()[1]

    def _error(self) -> tuple[str, str]:
        body = json.loads(self.body)
        error = body["error"]
        code, message = (body["code"], error) if isinstance(error, str) else (error["code"], error["message"])
        assert len(message) > 10
        return code, message


def scope_of(method: str, target: str, headers: Headers = ()) -> Scope:
    """The scope that uvicorn makes of a request line and its headers."""
    raw_path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(_raw(name).lower(), _raw(value)) for name, value in headers],
    }


def body_of(chunks: Iterable[bytes]) -> Receive:
    """A `receive` that gives the chunks and then waits, as a server does while its client stays."""
    left = list(chunks)

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        await asyncio.Event().wait()
        raise AssertionError

    return receive


async def call(
    app: ASGIApp,
    method: str,
    target: str,
    headers: Headers = (),
    *,
    body: bytes = b"",
    receive: Receive | None = None,
    scope: Scope | None = None,
) -> Reply:
    reply = Reply()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            reply.body += message.get("body", b"")

    await app(scope or scope_of(method, target, headers), receive or body_of([body]), send)
    return reply


class Inner:
    """An application that answers 200 with the name of the caller, and remembers what reached it."""

    def __init__(self, during: Callable[[], Awaitable[None]] | None = None) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self._during = during

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        if self._during:
            await self._during()
        answer: dict[str, Any] = {"caller": scope["state"]["key"]}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
