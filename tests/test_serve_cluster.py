"""The endpoint on a real Ray Serve, over real HTTP: it answers what the predictor answers, whatever it is sent."""

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from ray.serve.config import HTTPOptions

from models.predictor import Prediction, Predictor
from serve.app import app
from tests.images_zoo import zoo
from tests.serving import assert_same_entry, entry_of, files, free_port, picture, write_tiny_bundle

pytestmark = pytest.mark.ray

ONGOING, QUEUED = 8, 16
SETTINGS = {
    "max_ongoing_requests": ONGOING,
    "max_queued_requests": QUEUED,
    "max_replicas": 1,
    "max_body_mb": 2,
    "body_timeout_s": 2,
    "shutdown_s": 1,
}


@dataclass(frozen=True)
class Served:
    """A running endpoint, and the predictor over the same bundle."""

    url: str
    predictor: Predictor

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def connect(self) -> socket.socket:
        address = urlsplit(self.url)
        return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=60)


@pytest.fixture(scope="module")
def served(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import ray.serve

    bundle = str(tmp_path_factory.mktemp("models") / "bundle")
    write_tiny_bundle(bundle)
    port = free_port()
    ray.serve.start(http_options=HTTPOptions(port=port))
    ray.serve.run(app({"bundle": bundle, **{name: str(value) for name, value in SETTINGS.items()}}))
    yield Served(f"http://127.0.0.1:{port}", Predictor.load(bundle))
    ray.serve.shutdown()


PICTURES = [picture(seed, 30 + seed) for seed in range(40)]


def accuracy(labels: Sequence[str]) -> float:
    """Against labels that the pictures are given here: what counts is that the two ways agree."""
    truth = ["anemone", "crab", "eagle ray", "crab"] * 10
    return sum(found == true for found, true in zip(labels, truth, strict=True)) / len(truth)


def assert_as_predicted(served: Served, entries: Sequence[dict[str, Any]]) -> None:
    answers = served.predictor.predict_bytes(PICTURES)
    for entry, answer in zip(entries, answers, strict=True):
        assert_same_entry(entry, entry_of(answer))
    expected = [answer.label for answer in answers if isinstance(answer, Prediction)]
    assert accuracy([entry["label"] for entry in entries]) == accuracy(expected)


def test_one_by_one_it_answers_what_the_predictor_answers(served: Served) -> None:
    with served.client() as client:
        bodies = [client.post("/predict", content=blob).json() for blob in PICTURES]
    assert {body["model"] for body in bodies} == {served.predictor.info.id}
    assert_as_predicted(served, [body["predictions"][0] for body in bodies])


def test_in_one_request_it_answers_the_same(served: Served) -> None:
    with served.client() as client:
        body = client.post("/predict", files=files(PICTURES)).json()
    assert_as_predicted(served, body["predictions"])


def test_concurrently_it_answers_the_same(served: Served) -> None:
    async def run() -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=ONGOING)
        async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
            answers = await asyncio.gather(*(client.post("/predict", content=blob) for blob in PICTURES))
        return [answer.json()["predictions"][0] for answer in answers]

    assert_as_predicted(served, asyncio.run(run()))


def test_nasty_images_get_their_named_answer_and_harm_no_neighbour(served: Served) -> None:
    nasty = [one for one in zoo() if one.blob]  # an empty raw body is a malformed request; as a file it is below
    with served.client() as client:
        alone = [client.post("/predict", content=one.blob).json()["predictions"][0] for one in nasty]
        blobs = [blob for one in nasty for blob in (PICTURES[0], one.blob)]
        together: list[dict[str, Any]] = []
        for start in range(0, len(blobs), 32):
            together += client.post("/predict", files=files(blobs[start : start + 32])).json()["predictions"]
        empty = client.post("/predict", files=files([b"", PICTURES[0]])).json()["predictions"]
    good = entry_of(served.predictor.predict_bytes([PICTURES[0]])[0])
    for one, single, neighbour, batched in zip(nasty, alone, together[::2], together[1::2], strict=True):
        found = single["error"]["code"] if "error" in single else "ok"
        assert found == one.expected, one.name
        assert_same_entry(batched, single)
        assert_same_entry(neighbour, good)
        if one.expected == "ok":
            assert_same_entry(single, entry_of(served.predictor.predict_bytes([one.blob])[0]))
    assert empty[0]["error"]["code"] == "empty"
    assert_same_entry(empty[1], good)


def test_health_model_and_document(served: Served) -> None:
    with served.client() as client:
        assert client.get("/healthz").json() == {"status": "ok", "model": served.predictor.info.id}
        assert client.get("/model").json()["id"] == served.predictor.info.id
        assert "/predict" in client.get("/openapi.json").json()["paths"]
        assert client.get("/docs").status_code == 200


def test_errors_keep_their_form_through_the_proxy(served: Served) -> None:
    with served.client() as client:
        answers = [
            client.get("/nothing"),
            client.get("/predict"),
            client.post("/predict", content=b""),
            client.post("/predict", content=bytes(3 * 2**20)),
            client.post("/predict", content=(bytes(65536) for _ in range(80))),
        ]
        assert [answer.status_code for answer in answers] == [404, 405, 400, 413, 413]
        for answer in answers:
            assert set(answer.json()["error"]) == {"code", "message"}
        assert client.post("/predict", content=PICTURES[0]).status_code == 200


def half_a_request(served: Served) -> socket.socket:
    connection = served.connect()
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: endpoint\r\nContent-Length: 100000\r\n\r\nhalf")
    return connection


def test_aborted_bodies_leave_the_replica_alone(served: Served) -> None:
    for _ in range(3 * (ONGOING + QUEUED)):
        half_a_request(served).close()
    with served.client() as client:
        assert eventually_200(client)
        assert_as_predicted(served, [client.post("/predict", content=b).json()["predictions"][0] for b in PICTURES])


def eventually_200(client: httpx.Client) -> bool:
    """Whether the endpoint answers again, once the requests that a test left hanging are gone."""
    end = time.monotonic() + 60
    while client.post("/predict", content=PICTURES[0]).status_code != 200:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_slow_bodies_fill_the_queue_and_overload_is_answered_at_once(served: Served) -> None:
    """Each request that is sent half holds a place; when all are taken, the next one hears so, with Retry-After."""
    held = [half_a_request(served) for _ in range(ONGOING + QUEUED + 4)]
    try:
        with served.client() as client:
            refused: httpx.Response | None = None
            for attempt in range(200):
                if attempt % 20 == 19:  # on a busy machine the first ones had run out before the last one came
                    held += [half_a_request(served) for _ in range(ONGOING + QUEUED + 4)]
                answer = client.post("/predict", content=PICTURES[0], headers={"x-request-timeout-seconds": "0.2"})
                if answer.status_code == 429:
                    refused = answer
                    break
            assert refused is not None
            assert refused.headers["retry-after"] == "1"
        late = b""
        while b"body_timeout" not in late and (more := held[0].recv(65536)):
            late += more
        assert late.startswith(b"HTTP/1.1 408")
        assert b'{"error":{"code":"body_timeout"' in late
    finally:
        for connection in held:
            connection.close()
    with served.client() as client:
        assert eventually_200(client)
