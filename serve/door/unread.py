"""Answers that are given before the request has been read to its end: too large, no key, nothing at this path."""

import asyncio
import contextlib
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.door.ratelimits import Room

_LINGER_S: Final = 2.0
"""How long the rest of a request is read after its answer. HAProxy needs a few milliseconds to take the answer; a
client that speaks to a replica itself reads nothing before it has sent all."""
_LEFT_TO_THE_SERVER: Final = 64 * 2**20
"""Bytes of an announced body that the server may read to their end by itself, without the connection being closed."""


class ReadOn:
    """Reads the rest of a request whose answer did not wait for it, and keeps none of it.

    A server that closes a connection while bytes lie unread in it resets it, and what stands before the replica may
    then lose an answer that it has not taken yet: its client sees a closed connection and no answer (RFC 9112, 9.6).

    An announced body costs no more than its bytes: the server throws them away, and the connection stays. A body that
    may never end, or that came too slowly (408), is cut off: its answer says that the connection closes with it and
    goes out whole (it has a content-length), the rest is read for `linger_s` seconds at most, and then the connection
    is closed. Meanwhile the request keeps its place in the replica. So `at_once` are waited for, and of more than those
    the server reads on by itself.
    """

    def __init__(self, app: ASGIApp, *, linger_s: float = _LINGER_S, at_once: int = 4) -> None:
        self._app = app
        self._linger_s = linger_s
        self._room = Room(at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send, self._room)
        try:
            await self._app(scope, request.receive, request.send)
            if request.last is not None:
                await request.read_on(self._linger_s)
                await send(request.last)
        finally:
            if request.closes:
                self._room.leave()


class _Request:
    """What passes in and out of one request."""

    __slots__ = ("_more", "_receive", "_room", "_scope", "_send", "closes", "last")

    def __init__(self, scope: Scope, receive: Receive, send: Send, room: Room) -> None:
        self._scope, self._receive, self._send, self._room = scope, receive, send, room
        self._more = True
        self.closes = False
        """Whether it has a place in the room."""
        self.last: Message | None = None
        """What is still to be sent for the server to close the connection."""

    async def receive(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self._more and message["type"] == "http.response.start":
            if self._must_be_cut_off(message["status"]) and self._room.enter():
                self.closes = True
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        elif self.closes and not message.get("more_body", False):
            self.last = {"type": "http.response.body", "body": b"", "more_body": False}
            message = {**message, "more_body": True}
        await self._send(message)

    def _must_be_cut_off(self, status: int) -> bool:
        headers = dict(self._scope["headers"])
        announced = headers.get(b"content-length", b"")
        if announced.isdigit():
            return status == 408 or int(announced[:20]) > _LEFT_TO_THE_SERVER
        return b"transfer-encoding" in headers

    async def read_on(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._more:
                    await self.receive()
