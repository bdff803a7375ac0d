"""As little as a Python server can be: asyncio's protocol, httptools, one thread for the model.

What waits while the model is busy goes through it together, at most eight images.
"""

import asyncio
import json
import os
from collections import deque

import httptools
from sharedmodel import answer, load, port

_BATCH = 8


class Waiting:
    """Images that wait for the model."""

    def __init__(self) -> None:
        self._predictor = load()
        self._waiting: deque[tuple[Protocol, bytes]] = deque()
        self._busy = False

    def add(self, protocol: "Protocol", body: bytes) -> None:
        self._waiting.append((protocol, body))
        if not self._busy:
            self._busy = True
            self._next()

    def _next(self) -> None:
        jobs = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        running = asyncio.get_running_loop().run_in_executor(None, self._run, [body for _, body in jobs])
        running.add_done_callback(lambda done: self._answer([protocol for protocol, _ in jobs], done.result()))

    def _run(self, bodies: list[bytes]) -> list[bytes]:
        answers = self._predictor.predict(bodies)
        return [json.dumps(answer(self._predictor, [one])).encode() for one in answers]

    def _answer(self, protocols: "list[Protocol]", bodies: list[bytes]) -> None:
        for protocol, body in zip(protocols, bodies, strict=True):
            protocol.answer(body)
        self._busy = bool(self._waiting)
        if self._busy:
            self._next()


class Protocol(asyncio.Protocol):
    """One connection; one request at a time on it."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._waiting.add(self, b"".join(self._body))
        self._body = []

    def answer(self, body: bytes) -> None:
        if self._transport is not None:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % len(body) + body)


async def main() -> None:
    waiting = Waiting()
    server = await asyncio.get_running_loop().create_server(lambda: Protocol(waiting), "127.0.0.1", port())
    await server.serve_forever()


if __name__ == "__main__":
    if os.environ.get("BARE_UVLOOP"):
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
