"""What the tests of the client share: a server that answers as it is told, misbehaving included."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serve.client import Answer, Client

ENTRY = {"label": "crab", "probability": 0.75, "probabilities": {"anemone": 0.25, "crab": 0.75}, "confident": True}
ANSWER = Answer("m1", "crab", 0.75, {"anemone": 0.25, "crab": 0.75}, True)
MODEL = {"id": "m1", "classes": ["anemone", "crab"], "engine": "torch"}


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes
    send: Callable[[bytes], None]

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]


Turn = Callable[[Asked], bytes | None]
"""What is sent for a request; None drops the connection."""


@dataclass
class Server:
    """Answers each request by the next of `turns`, and by the last one from then on."""

    turns: list[Turn]
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, **options: Any) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", **{"sleep": lambda _: None, **options})

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline().decode().strip():
                headers: dict[str, str] = {}
                while header := stream.readline().decode().strip():
                    name, _, value = header.partition(": ")
                    headers[name.lower()] = value
                asked = Asked(line, headers, stream.read(int(headers.get("content-length", "0"))), connection.sendall)
                with self.lock:
                    self.asked.append(asked)
                    turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
                reply = turn(asked)
                if reply is None:
                    return
                connection.sendall(reply)
                if b"connection: close" in reply:
                    return


@contextmanager
def serving(*turns: Turn) -> Iterator[Server]:
    server = Server(list(turns))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept
    thread.join()


def reply(status: int, body: object, *headers: str, id_: str | None = None) -> Callable[[Asked], bytes]:
    """An HTTP answer; JSON unless `body` is a text. `id_` stands for the request's own id."""

    def turn(asked: Asked) -> bytes:
        text = body if isinstance(body, str) else json.dumps(body)
        lines = [f"HTTP/1.1 {status} Any", f"content-length: {len(text)}", *headers]
        if id_ != "":
            lines.append(f"x-request-id: {id_ or asked.id}")
        return "\r\n".join([*lines, "", text]).encode()

    return turn


def right(asked: Asked) -> bytes | None:
    if asked.line.startswith("GET /model"):
        return reply(200, MODEL)(asked)
    return reply(200, {"model": "m1", "predictions": [ENTRY]})(asked)


def drop(_: Asked) -> None:
    """The connection ends where the answer should come, as with a replica that is killed."""


def cut(asked: Asked) -> bytes:
    whole = right(asked)
    assert whole is not None
    return whole[:-10].replace(b"200 Any\r\n", b"200 Any\r\nconnection: close\r\n")


def plain(status: int, text: str = "Request timed out.", *headers: str) -> Turn:
    """As Ray's proxy answers: a text, and no request id."""
    return reply(status, text, *headers, id_="")


def error(status: int, code: str) -> Turn:
    return reply(status, {"error": {"code": code, "message": f"it is {code}"}})
