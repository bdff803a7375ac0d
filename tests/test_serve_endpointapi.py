"""What the promoting command asks of an endpoint over HTTP, and the golden images that it sends."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from serve.clientanswers import ClientError, RefusedError, UnavailableError
from serve.promotion.candidate import part_of
from serve.promotion.endpointapi import EndpointApi, GoldenTraffic
from tests.serving import free_port


class Server:
    """Answers each request with the next of what it was given, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""


@pytest.fixture
def server() -> Iterator[Server]:
    kept = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kept.asked.append((self.path, self.headers["authorization"]))
            status, body = kept.answers.pop(0)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    kept.url = f"http://127.0.0.1:{made.server_port}"
    yield kept
    made.shutdown()
    made.server_close()
    thread.join()


def test_it_asks_with_the_key(server: Server) -> None:
    server.answers = [(200, b'{"promotion": null}'), (200, b'{"promotion": "p1"}'), (200, b'{"id": "abc"}')]
    api = EndpointApi(server.url + "/", "secret")
    assert api.promotion() == {"promotion": None}
    assert api.promotion(watching="p1") == {"promotion": "p1"}
    assert api.model() == "abc"
    assert server.asked == [
        ("/promotion", "Bearer secret"),
        ("/promotion?watching=p1", "Bearer secret"),
        ("/model", "Bearer secret"),
    ]


@pytest.mark.parametrize("answer", [(503, b'{"error": {}}'), (200, b"<html>"), (200, b"[]"), (429, b""), (302, b"")])
def test_no_answer_now_is_none(server: Server, answer: tuple[int, bytes]) -> None:
    server.answers = [answer, answer]
    api = EndpointApi(server.url)
    assert api.promotion() is None
    assert str(answer[0]) in api.problem
    assert api.model() is None


def test_nobody_there_is_none_too() -> None:
    api = EndpointApi(f"http://127.0.0.1:{free_port()}")
    assert api.promotion() is None
    assert "refused" in api.problem


@pytest.mark.parametrize(("status", "complaint"), [(401, "EAGLERAY_KEY"), (403, "EAGLERAY_KEY"), (404, "this version")])
def test_what_must_be_mended_is_told(server: Server, status: int, complaint: str) -> None:
    server.answers = [(status, b"{}"), (status, b"{}")]
    api = EndpointApi(server.url)
    with pytest.raises(UserError, match=complaint):
        api.promotion()
    assert api.model() == ""  # going back needs no key


def test_an_address_is_an_address() -> None:
    with pytest.raises(UserError, match="begins with http"):
        EndpointApi("localhost:8000")


class Asked:
    """Takes requests like `serve.client.Client`."""

    def __init__(self, error: ClientError | None = None) -> None:
        self.ids: list[str] = []
        self.images: list[int] = []
        self._error = error

    def predict(self, image: Any, *, request_id: str) -> None:
        self.ids.append(request_id)
        self.images.append(int(image[0, 0, 0]))
        if self._error is not None:
            raise self._error


IMAGES = [np.full((4, 4, 3), number, np.uint8) for number in range(3)]


def test_golden_images_go_by_turns_to_the_candidate() -> None:
    asked = Asked()
    traffic = GoldenTraffic(asked)  # type: ignore[arg-type]
    traffic(IMAGES, 0.1)
    traffic(IMAGES, 0.1)
    assert len(set(asked.ids)) == len(asked.ids) > 50
    assert all(part_of(name) < 0.1 for name in asked.ids)
    assert asked.images[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_in_the_shadow_any_id_will_do() -> None:
    asked = Asked()
    GoldenTraffic(asked)(IMAGES, 0.0)  # type: ignore[arg-type]
    assert max(part_of(name) for name in asked.ids) > 0.5


def test_an_endpoint_that_is_busy_is_left_alone_and_one_that_refuses_is_told_of() -> None:
    busy = Asked(UnavailableError("overloaded", "too many wait", status=429))
    GoldenTraffic(busy)(IMAGES, 0.0)  # type: ignore[arg-type]
    assert len(busy.ids) == 1
    refusing = Asked(RefusedError("wrong_key", "not known here", status=403))
    with pytest.raises(UserError, match="refuses a golden image: not known here"):
        GoldenTraffic(refusing)(IMAGES, 0.0)  # type: ignore[arg-type]
