"""The client against a server that misbehaves on purpose: it answers once, rightly, or says why not."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from data.images import decode
from serve.client import Answer, AnswerError, Client, Problem, RefusedError, Retry, UnavailableError

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


def test_an_answer_and_the_request_behind_it() -> None:
    with serving(right) as server, server.client(key="secret") as client:
        assert client.predict(b"image") == ANSWER
        assert client.predict(b"other", request_id="mine-1") == ANSWER
    first, second = server.asked
    assert first.line == "POST /predict HTTP/1.1"
    assert first.body == b"image"
    assert first.headers["authorization"] == "Bearer secret"
    assert len(first.id) == 32
    assert second.id == "mine-1"
    assert server.connections == 1


def test_without_a_key_none_is_sent() -> None:
    with serving(right) as server, server.client() as client:
        client.predict(b"image")
    assert "authorization" not in server.asked[0].headers


def test_model_and_ready() -> None:
    with serving(right) as server, server.client() as client:
        found = client.model()
        assert (found.id, found.classes, found.about["engine"]) == ("m1", ("anemone", "crab"), "torch")
        assert client.ready()
    assert server.asked[1].line == "GET /healthz HTTP/1.1"
    assert not client.ready()  # nobody listens any more
    with serving(error(503, "not_ready")) as server, server.client() as client:
        assert not client.ready()


@pytest.mark.parametrize(
    "trouble",
    [drop, cut, *(plain(status) for status in (408, 429, 500, 502, 503, 504)), error(503, "not_ready")],
)
def test_what_can_be_tried_again_is_tried_again_under_the_same_id(trouble: Turn) -> None:
    retries: list[Retry] = []
    with serving(trouble, trouble, right) as server, server.client(on_retry=retries.append) as client:
        assert client.predict(b"image") == ANSWER
    assert len(server.asked) == 3
    assert len({asked.id for asked in server.asked}) == 1
    assert {asked.body for asked in server.asked} == {b"image"}
    assert [one.attempt for one in retries] == [1, 2]
    assert {one.kind for one in retries} == {"connection" if trouble in (drop, cut) else "status"}


def test_a_connection_that_was_closed_while_idle_is_opened_again() -> None:
    with serving(right, drop, right) as server, server.client() as client:
        assert [client.predict(b"image"), client.predict(b"image")] == [ANSWER, ANSWER]
    assert server.connections == 2


def test_an_answer_to_another_request_never_counts() -> None:
    stray = {"model": "m1", "predictions": [{**ENTRY, "label": "wrong"}]}
    with serving(reply(200, stray, id_="another"), right) as server, server.client() as client:
        assert client.predict(b"image") == ANSWER
    assert server.connections == 2  # what comes next on such a connection would be a stranger's as well
    with serving(reply(200, stray, id_="another")) as server, server.client(retries=2) as client:
        with pytest.raises(AnswerError) as caught:
            client.predict(b"image")
        assert caught.value.code == "wrong_request_id"
    assert len(server.asked) == 3


def test_the_id_may_stand_there_twice() -> None:
    def twice(asked: Asked) -> bytes:
        return reply(200, {"model": "m1", "predictions": [ENTRY]}, f"X-Request-ID: {asked.id}")(asked)

    with serving(twice) as server, server.client() as client:
        assert client.predict(b"image") == ANSWER


@pytest.mark.parametrize(
    "page",
    [
        reply(200, "<html>a page</html>"),
        reply(200, {"predictions": [ENTRY]}),
        reply(200, {"model": "m1", "predictions": []}),
        reply(200, {"model": "m1", "predictions": [{**ENTRY, "probability": "high"}]}),
        reply(200, {"model": "m1", "predictions": [ENTRY]}, id_=""),
    ],
)
def test_what_is_no_answer_of_ours_is_not_taken_for_one(page: Turn) -> None:
    with serving(page) as server, server.client() as client, pytest.raises(AnswerError, match="look at the address"):
        client.predict(b"image")
    assert len(server.asked) == 1


def test_a_refusal_is_told_with_its_code_and_not_tried_again() -> None:
    with serving(error(403, "wrong_key")) as server, server.client(key="x") as client:
        with pytest.raises(RefusedError, match="it is wrong_key") as caught:
            client.predict(b"image")
        assert (caught.value.status, caught.value.code) == (403, "wrong_key")
        assert caught.value.request_id == server.asked[0].id
    with serving(plain(404, "Path '/predict' not found.")) as server, server.client() as client:
        with pytest.raises(RefusedError, match="HTTP 404: Path") as caught:
            client.predict(b"image")
        assert caught.value.code == "http_404"
    assert len(server.asked) == 1


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with serving(right) as other:
        moved = reply(302, "", f"location: http://127.0.0.1:{other.port}/predict")
        with serving(moved) as server, server.client(key="secret") as client, pytest.raises(RefusedError):
            client.predict(b"image")
    assert other.asked == []


def test_an_image_that_fails_is_a_value() -> None:
    entry = {"error": {"code": "truncated", "message": "cut off"}}
    with serving(reply(200, {"model": "m1", "predictions": [entry]})) as server, server.client() as client:
        assert client.predict(b"image") == Problem("truncated", "cut off")


def test_pauses_grow_with_jitter_and_retry_after_is_honoured_up_to_a_cap() -> None:
    pauses: list[float] = []
    turns = [plain(503), plain(503), plain(429, "", "retry-after: 7"), plain(429, "", "retry-after: 4000"), drop]
    soon = [plain(429, "", "retry-after: Wed, 21 Oct 2026 07:28:00 GMT"), right]
    with serving(*turns, *soon) as server, server.client(sleep=pauses.append, timeout_s=600) as client:
        client.predict(b"image")
    bounds = [(0.05, 0.1), (0.1, 0.2), (7, 7), (30, 30), (0.8, 1.6), (1.6, 3.2)]
    assert all(low <= pause <= high for pause, (low, high) in zip(pauses, bounds, strict=True))


def test_tries_end() -> None:
    with serving(plain(503, "no replica")) as server, server.client(retries=3, timeout_s=600) as client:
        with pytest.raises(UnavailableError, match="no replica") as caught:
            client.predict(b"image")
        assert caught.value.status == 503
    assert len(server.asked) == 4


def test_a_pause_that_would_outlast_the_deadline_is_not_made() -> None:
    turn = plain(429, "full", "retry-after: 20")
    with serving(turn) as server, server.client(timeout_s=10) as client, pytest.raises(UnavailableError):
        client.predict(b"image")
    assert len(server.asked) == 1


def test_a_server_that_says_nothing_or_little_does_not_keep_us() -> None:
    gone = threading.Event()

    def silent(_: Asked) -> None:
        gone.wait(30)

    def dripping(asked: Asked) -> None:
        asked.send(reply(200, "x" * 10**7)(asked)[:100_000])
        with contextlib.suppress(OSError):  # until the client hangs up
            while not gone.wait(0.05):  # each piece sets back a socket's own timeout
                asked.send(b"x" * 70_000)

    for turn in (silent, dripping):
        gone.clear()
        with serving(turn) as server, server.client(timeout_s=0.2) as client:
            with pytest.raises(UnavailableError) as caught:
                client.predict(b"image")
            assert caught.value.code == "no_connection"
            gone.set()


def test_nobody_listens() -> None:
    with socket.socket() as probe:  # bound and not listening: nobody else gets this port
        probe.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{probe.getsockname()[1]}", retries=2, sleep=lambda _: None)
        with pytest.raises(UnavailableError, match="is the endpoint up") as caught:
            client.predict(b"image")
        assert caught.value.status == 0


def test_files_and_arrays(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (tmp_path / "a.jpg").write_bytes(b"bytes of a file")
    (tmp_path / "empty.jpg").touch()
    with serving(right) as server, server.client() as client:
        assert client.predict(pixels) == ANSWER
        assert client.predict(tmp_path / "a.jpg") == ANSWER
        assert client.predict(str(tmp_path / "a.jpg")) == ANSWER
        nothing = [b"", tmp_path / "empty.jpg", tmp_path / "gone.jpg", np.zeros((20, 30, 3), np.float32)]
        problems = [client.predict(image) for image in nothing]  # type: ignore[arg-type]
    found = decode(server.asked[0].body)
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, pixels)
    assert [asked.body for asked in server.asked[1:]] == [b"bytes of a file"] * 2
    codes = [problem.code for problem in problems if isinstance(problem, Problem)]
    assert codes == ["empty", "empty", "unreadable", "bad_array"]


def echo(asked: Asked) -> bytes | None:
    """The image's own bytes as its label; even numbers come later than odd ones."""
    if int(asked.body) % 2 == 0:
        time.sleep(0.005)
    return reply(200, {"model": "m1", "predictions": [{**ENTRY, "label": asked.body.decode()}]})(asked)


def labels(found: list[Answer | Problem]) -> list[str]:
    return [one.label if isinstance(one, Answer) else one.code for one in found]


def test_many_in_order_and_read_only_a_little_ahead() -> None:
    taken: list[int] = []

    def images() -> Iterator[bytes]:
        for number in range(40):
            taken.append(number)
            yield str(number).encode() if number != 5 else b""

    with serving(echo) as server, server.client() as client:
        answers = client.predict_many(images(), workers=3)
        first = next(answers)
        assert len(taken) == 6
        found = labels([first, *answers])
    assert found == [str(number) if number != 5 else "empty" for number in range(40)]
    assert server.connections <= 3
    assert len({asked.id for asked in server.asked}) == len(server.asked) == 39


def test_many_stop_at_a_refusal() -> None:
    with serving(right, error(401, "no_key")) as server, server.client() as client:
        answers = client.predict_many([b"image"] * 1000, workers=1)
        assert next(answers) == ANSWER
        with pytest.raises(RefusedError):
            list(answers)
    assert len(server.asked) < 10


def test_threads_share_a_client_and_get_their_own_answers() -> None:
    with serving(echo) as server, server.client(connections=2) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client.predict, [str(number).encode() for number in range(64)]))
    assert labels(found) == [str(number) for number in range(64)]
    assert server.connections <= 2


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"retries": -1}, {"connections": 0}])
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Client("http://127.0.0.1:1", **options)


def test_what_is_no_address_or_id() -> None:
    with pytest.raises(UserError, match="begins with http"):
        Client("127.0.0.1:8000")
    client = Client("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="request_id"):
        client.predict(b"image", request_id="a b\r\n")
    with pytest.raises(ValueError, match="workers"):
        next(client.predict_many([b"image"], workers=0))
