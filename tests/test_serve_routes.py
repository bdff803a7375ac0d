"""The endpoint's HTTP over a real predictor, without Ray: bodies, answers, limits, errors."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from models.bundle import BundleInfo
from models.predictor import Predictor
from serve.endpoint import Answer, Endpoint, Image
from serve.routes import build_api
from tests.serving import (
    CLASSES,
    Client,
    assert_same_entry,
    entry_of,
    files,
    picture,
    plain_endpoint,
)

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def predictor(tiny_bundle: str) -> Predictor:
    return Predictor.load(tiny_bundle)


def client_of(tiny_bundle: str, **settings: Any) -> Client:
    return Client(plain_endpoint(tiny_bundle, **settings)[1])


@pytest.fixture(scope="module")
def client(tiny_bundle: str) -> Client:
    return client_of(tiny_bundle, max_body_mb=1, max_files=5)


def code_of(response: httpx.Response) -> str:
    """The code of an error answer, after checking the one form that all errors have."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert len(body["error"]["message"]) > 10
    assert "Traceback" not in response.text
    return str(body["error"]["code"])


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", None])
def test_a_raw_body_of_any_type_is_one_image(client: Client, predictor: Predictor, kind: str | None) -> None:
    response = client.post("/predict", content=picture(1), headers={"content-type": kind} if kind else {})
    assert response.status_code == 200
    body = response.json()
    assert body["model"] == predictor.info.id
    (entry,) = body["predictions"]
    assert "file" not in entry
    assert_same_entry(entry, entry_of(predictor.predict_bytes([picture(1)])[0]))
    assert abs(sum(entry["probabilities"].values()) - 1) < 1e-5


def test_multipart_answers_every_file_in_order_with_its_name(client: Client, predictor: Predictor) -> None:
    blobs = [picture(1), b"no image", b"", picture(3)[:200], picture(4)]
    parts = [*files(blobs[:2]), ("another field", ("δ 4.png", blobs[2])), *files(blobs[3:])]
    response = client.post("/predict", files=parts, data={"comment": "is no image"})
    assert response.status_code == 200
    entries = response.json()["predictions"]
    assert [entry["file"] for entry in entries] == ["0.png", "1.png", "δ 4.png", "0.png", "1.png"]
    for entry, answer in zip(entries, predictor.predict_bytes(blobs), strict=True):
        assert_same_entry(entry, entry_of(answer))
    assert ["error" in entry for entry in entries] == [False, True, True, True, False]


def test_one_image_that_fails_is_a_value_too(client: Client) -> None:
    response = client.post("/predict", content=b"this is a text")
    assert response.status_code == 200
    (entry,) = response.json()["predictions"]
    assert entry["error"]["code"] == "not_an_image"


async def chunks(total: int) -> AsyncIterator[bytes]:
    """A body that announces no size."""
    for _ in range(total // 65536):
        yield bytes(65536)


def test_a_body_over_the_limit_is_refused_whether_it_announces_its_size_or_not(client: Client) -> None:
    for content in (bytes(MIB + 1), chunks(2 * MIB)):
        response = client.post("/predict", content=content)
        assert response.status_code == 413
        assert code_of(response) == "body_too_large"
        assert "1 MiB" in response.json()["error"]["message"]
    assert client.post("/predict", files=files([bytes(MIB)])).status_code == 413
    assert client.post("/predict", content=chunks(MIB)).status_code == 200  # at the limit: an image that fails


def test_a_size_that_lies_does_not_get_past_the_limit(tiny_bundle: str) -> None:
    _, app = plain_endpoint(tiny_bundle, max_body_mb=0.1)
    sent = [{"type": "http.request", "body": bytes(65536), "more_body": True}] * 1000
    status, body, taken = asyncio.run(call(app, sent, headers=[(b"content-length", b"10")]))
    assert status == 413
    assert json.loads(body)["error"]["code"] == "body_too_large"
    assert taken == 2  # refused while it arrives: the other 998 chunks were never asked for


async def call(
    app: Any, messages: Sequence[Message], *, headers: Sequence[tuple[bytes, bytes]] = (), wait_s: float = 0.0
) -> tuple[int, bytes, int]:
    """POST /predict by hand: the status, the body, and how many messages the application asked for."""
    taken = 0
    sent: list[Message] = []

    async def receive() -> Message:
        nonlocal taken
        if taken >= len(messages):
            await asyncio.sleep(wait_s)
            return {"type": "http.disconnect"}
        taken += 1
        return messages[taken - 1]

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "scheme": "http",
        "server": ("endpoint", 80),
    }
    await app(scope, receive, send)
    status = next((message["status"] for message in sent if message["type"] == "http.response.start"), 0)
    return status, b"".join(message.get("body", b"") for message in sent), taken


def test_a_slow_body_is_given_up(tiny_bundle: str) -> None:
    _, app = plain_endpoint(tiny_bundle, body_timeout_s=0.05)
    messages = [{"type": "http.request", "body": b"\x89PNG", "more_body": True}]
    status, body, _ = asyncio.run(call(app, messages, wait_s=30))
    assert status == 408
    assert json.loads(body)["error"]["code"] == "body_timeout"


def test_an_aborted_body_ends_in_silence(tiny_bundle: str, caplog: pytest.LogCaptureFixture) -> None:
    _, app = plain_endpoint(tiny_bundle)
    messages = [{"type": "http.request", "body": b"\x89PNG", "more_body": True}]
    assert asyncio.run(call(app, messages)) == (0, b"", 1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "image/png", 400, "empty_body"),
        (b"", "multipart/form-data; boundary=x", 400, "empty_body"),
        (b"--x\r\n", "multipart/form-data", 400, "bad_multipart"),
        (b"not what it says", "multipart/form-data; boundary=x", 400, "bad_multipart"),
        (b"--x--\r\n", "multipart/form-data; boundary=" + "x" * 300, 400, "bad_multipart"),
        (b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\ncut', "", 400, "bad_multipart"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n--x--\r\n', "", 422, "no_files"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 33 + b"--x--\r\n",
            "",
            422,
            "too_many_fields",
        ),
        (b"--x\r\n\r\n\r\n--x--\r\n", "multipart/mixed; boundary=x", 422, "not_form_data"),
    ],
)
def test_a_body_that_is_not_what_it_claims(client: Client, content: bytes, kind: str, status: int, code: str) -> None:
    kind = kind or "multipart/form-data; boundary=x"
    response = client.post("/predict", content=content, headers={"content-type": kind})
    assert (response.status_code, code_of(response)) == (status, code)


def test_too_many_files(client: Client) -> None:
    response = client.post("/predict", files=files([picture(1)] * 6))
    assert (response.status_code, code_of(response)) == (413, "too_many_files")
    assert "5" in response.json()["error"]["message"]


def test_errors_of_the_framework_have_the_same_form(client: Client) -> None:
    missing = client.get("/nothing/here")
    assert (missing.status_code, code_of(missing)) == (404, "not_found")
    wrong = client.get("/predict")
    assert (wrong.status_code, code_of(wrong), wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


class BrokenModel:
    """Answers its warm-up, then fails on every image."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._warm_ups = 2

    @property
    def info(self) -> BundleInfo:
        return self._predictor.info

    def predict(self, images: Sequence[Image]) -> list[Answer]:
        if self._warm_ups:
            self._warm_ups -= 1
            return self._predictor.predict_bytes([image for image in images if isinstance(image, bytes)])
        raise ZeroDivisionError("a secret of the server")


def test_an_unexpected_exception_stays_on_the_server(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    _, app = plain_endpoint("somewhere", model=BrokenModel(predictor))
    client = Client(app)
    with caplog.at_level(logging.ERROR, logger="eagleray.serve"):
        response = client.post("/predict", content=picture(1), headers={"x-request-id": "abc\t<123>"})
    assert (response.status_code, code_of(response)) == (500, "internal")
    assert "secret" not in response.text
    assert "abc__123_" in response.text
    assert "abc__123_" in caplog.text
    assert "a secret of the server" in caplog.text


def test_a_slash_too_many_is_no_redirect_to_a_host_that_the_client_names(client: Client) -> None:
    for method, path in (("GET", "/model/"), ("POST", "/predict/"), ("GET", "/v2/models/eagleray/")):
        response = client.request(method, path, headers={"host": "elsewhere.example"})
        assert response.status_code == 404
        assert "location" not in response.headers


def test_nothing_answers_before_the_model_is_loaded() -> None:
    client = Client(build_api(Endpoint()))
    for method, path in (("GET", "/healthz"), ("GET", "/model"), ("POST", "/predict")):
        response = client.request(method, path)
        assert (response.status_code, code_of(response)) == (503, "not_ready")


def test_health_and_model_describe_what_is_in_service(client: Client, predictor: Predictor) -> None:
    info = predictor.info
    assert client.get("/healthz").json() == {"status": "ok", "model": info.id}
    described = client.get("/model").json()
    assert described["id"] == info.id
    assert described["classes"] == list(CLASSES)
    assert described["architecture"]["model"] == "cnn"
    assert described["preprocessing"]["resize"]["size"] == 32
    assert described["scores"]["test"]["accuracy_interval"] == [0.4, 0.6]
    assert described["fingerprints"]["weights"] == info.fingerprints["weights"]


def test_the_openapi_document_describes_both_bodies_and_every_answer(client: Client) -> None:
    document = client.get("/openapi.json").json()
    predict = document["paths"]["/predict"]["post"]
    assert {"image/*", "multipart/form-data"} <= set(predict["requestBody"]["content"])
    assert predict["requestBody"]["required"]
    expected = {"200", "400", "401", "403", "408", "413", "415", "422", "429", "500", "503"}
    assert set(predict["responses"]) == expected
    schemas = document["components"]["schemas"]
    for name in ("PredictAnswer", "ImagePrediction", "ImageFailure", "ErrorAnswer", "ModelAnswer", "HealthAnswer"):
        for field, described in schemas[name]["properties"].items():
            assert "description" in described or "$ref" in str(described), f"{name}.{field} is not explained"
    assert client.get("/docs").status_code == 200
    for status in ("408", "429", "500", "503"):  # of Ray's proxy, in plain text
        assert status in document["info"]["description"]
    assert "plain text" in document["info"]["description"]
    assert "timeout" in document["paths"]["/healthz"]["get"]["description"]
    # What is described is what is answered.
    model = client.get("/model").json()
    assert set(model) == set(schemas["ModelAnswer"]["properties"])
    entry = client.post("/predict", files=files([picture(1)])).json()["predictions"][0]
    assert set(entry) == set(schemas["ImagePrediction"]["properties"])
