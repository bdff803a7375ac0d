"""Answers that are given before the request has been read to its end: too large, no key, nothing at this path."""

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.door.ratelimits import Room

_LINGER_S: Final = 2.0
"""How long the rest of a request is read after its answer. HAProxy needs a few milliseconds to take the answer; a
client that speaks to a replica itself reads nothing before it has sent all."""


class ReadOn:
    """Reads the rest of a request whose answer did not wait for it, and keeps none of it.

    A server that closes a connection while bytes lie unread in it resets it, and what stands before the replica may
    then lose an answer that it has not taken yet: its client sees a closed connection and no answer (RFC 9112, 9.6).
    So what has arrived is read before the answer. Where that is not all, the answer says that the connection closes
    with it and goes out whole, and the rest is read before that, for `linger_s` seconds at most and by `at_once`
    requests: each takes the place of another in the replica.
    """

    def __init__(self, app: ASGIApp, *, linger_s: float = _LINGER_S, at_once: int = 8) -> None:
        self._app = app
        self._linger_s = linger_s
        self._room = Room(at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive, send)
        await self._app(scope, request.receive, request.send)
        if request.last is None:
            return
        with self._room.place() as free:
            if free:
                await request.read_on(self._linger_s)
        await send(request.last)


class _Request:
    """What passes in and out of one request."""

    __slots__ = ("_closes", "_more", "_receive", "_send", "last")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._more = True
        self._closes = False
        self.last: Message | None = None
        """What is still to be sent for the server to close the connection."""

    async def receive(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self._more and message["type"] == "http.response.start":
            await self.read_on(0)
            if self._more:
                self._closes = True
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        elif self._closes and not message.get("more_body", False):
            self.last = {"type": "http.response.body", "body": b"", "more_body": False}
            message = {**message, "more_body": True}
        await self._send(message)

    async def read_on(self, seconds: float) -> None:
        """To the end of the request; with 0 seconds what is there already."""
        try:
            async with asyncio.timeout(seconds):
                while self._more:
                    await self.receive()
        except TimeoutError:
            return
