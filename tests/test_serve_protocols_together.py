"""What all protocols have in common: one predictor, notes for the outer layers, errors in their forms."""

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from starlette.types import Message, Receive, Scope, Send

from models.bundle import BundleInfo
from serve.endpoint import Answer, Answered, Image
from serve.protocols.errorforms import error_body
from serve.scopestate import note, noted
from tests.protocols import Recorder, app_around, close, floats, pixels, protocol_app
from tests.serving import Client, picture, plain_endpoint

IMAGE = {"b64": base64.b64encode(picture(1)).decode()}
REQUESTS: list[tuple[str, str, bytes]] = [
    ("/invocations", "image/png", picture(1)),
    ("/endpoints/eagleray/invocations", "application/json", json.dumps([IMAGE]).encode()),
    ("/v1/models/eagleray:predict", "", json.dumps({"inputs": IMAGE}).encode()),
    (
        "/v2/models/eagleray/infer",
        "application/json",
        json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [IMAGE["b64"]]}]}).encode(),
    ),
]


@pytest.mark.parametrize(("path", "kind", "body"), REQUESTS)
def test_the_layers_outside_learn_which_model_answered(tiny_bundle: str, path: str, kind: str, body: bytes) -> None:
    recorder = Recorder(tiny_bundle)
    endpoint, _ = plain_endpoint(tiny_bundle, model=recorder)
    ids, scopes = list[str](), list[Scope]()
    predict = endpoint.predict

    async def watched(images: Sequence[Image], request_id: str) -> Answered:
        ids.append(request_id)
        return await predict(images, request_id)

    endpoint.predict = watched  # type: ignore[method-assign]
    app = app_around(endpoint)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        note(scope, "request_id", "the-id")
        scopes.append(scope)
        await app(scope, receive, send)

    response = Client(outer).post(path, content=body, headers={"content-type": kind})  # type: ignore[arg-type]
    assert response.status_code == 200
    assert ids == ["the-id"]
    assert noted(scopes[0], "model") == recorder.info.id


def test_without_an_outer_layer_each_request_has_an_id_of_its_own(tiny_bundle: str) -> None:
    endpoint, _ = plain_endpoint(tiny_bundle, model=Recorder(tiny_bundle))
    ids = list[str]()
    predict = endpoint.predict

    async def watched(images: Sequence[Image], request_id: str) -> Answered:
        ids.append(request_id)
        return await predict(images, request_id)

    endpoint.predict = watched  # type: ignore[method-assign]
    client = Client(app_around(endpoint))
    for _ in range(2):
        client.post("/invocations", content=picture(1), headers={"content-type": "image/png"})
    assert len(set(ids)) == 2


def test_arrays_of_every_protocol_get_the_same_answer(tiny_bundle: str) -> None:
    recorder, app = protocol_app(tiny_bundle)
    client = Client(app)
    images = np.stack([pixels(seed, 64) for seed in range(3)])
    instances = floats(images).tolist()  # 0.7 MB of JSON: decoded in its thread
    tensor = {"name": "x", "datatype": "FP64", "shape": [3, 64, 64, 3], "data": instances}
    rows = [
        client.post("/invocations", json=instances).json()["predictions"],
        client.post("/v1/models/eagleray:predict", json={"instances": instances}).json()["predictions"],
        client.post("/v1/models/eagleray:predict", json={"inputs": instances}).json()["outputs"],
        np.reshape(
            client.post("/v2/models/eagleray/infer", json={"inputs": [tensor]}).json()["outputs"][0]["data"], (3, -1)
        ),
    ]
    assert all(close(one, recorder.rows(list(images))) for one in rows)


@pytest.mark.parametrize(("path", "kind", "body"), REQUESTS)
def test_a_slow_body_is_given_up(tiny_bundle: str, path: str, kind: str, body: bytes) -> None:
    _, app = protocol_app(tiny_bundle, body_timeout_s=0.02)
    sent: list[Message] = []
    left: list[Message] = [{"type": "http.request", "body": body[:10], "more_body": True}]

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(30)
        return left.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", kind.encode())]
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    asyncio.run(app({**scope, "raw_path": path.encode(), "root_path": "", "scheme": "http"}, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "body_timeout"


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/models/a:predict", {"error": "words", "code": "a_code"}),
        ("/v2", {"error": "words", "code": "a_code"}),
        ("/v2/health/ready", {"error": "words", "code": "a_code"}),
        ("/ping", {"error": {"code": "a_code", "message": "words"}, "code": "a_code", "message": "words"}),
        ("/invocations", {"error": {"code": "a_code", "message": "words"}, "code": "a_code", "message": "words"}),
        ("/endpoints/a/b", {"error": {"code": "a_code", "message": "words"}, "code": "a_code", "message": "words"}),
        ("/predict", {"error": {"code": "a_code", "message": "words"}}),
        ("/v10/models", {"error": {"code": "a_code", "message": "words"}}),
        ("/", {"error": {"code": "a_code", "message": "words"}}),
        ("", {"error": {"code": "a_code", "message": "words"}}),
    ],
)
def test_the_form_of_an_error_is_that_of_its_path(path: str, form: dict[str, Any]) -> None:
    assert error_body(path, "a_code", "words") == form


class Broken:
    """A model that answers its warm-up and then fails in a way that nobody expected."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.ready = False

    @property
    def info(self) -> BundleInfo:
        return self._recorder.info

    def predict(self, images: Sequence[Image]) -> list[Answer]:
        if self.ready:
            raise ZeroDivisionError("a secret of the server")
        return self._recorder.predict(images)


@pytest.mark.parametrize(("path", "kind", "body"), [*REQUESTS, ("/predict", "image/png", picture(1))])
def test_what_nobody_expected_has_the_form_of_its_path(tiny_bundle: str, path: str, kind: str, body: bytes) -> None:
    broken = Broken(Recorder(tiny_bundle))
    _, app = plain_endpoint(tiny_bundle, model=broken)
    broken.ready = True
    response = Client(app).post(path, content=body, headers={"content-type": kind, "x-request-id": "the-id"})
    message = "the server failed on this request: report it with the request id the-id"
    assert (response.status_code, response.json()) == (500, error_body(path, "internal", message))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/nothing", 404, "not_found"),
        ("GET", "/v2/nothing", 404, "not_found"),
        ("GET", "/endpoints/eagleray/nothing", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v2/models/eagleray/infer", 405, "method_not_allowed"),
        ("GET", "/v1/models/eagleray:predict", 405, "method_not_allowed"),
        ("GET", "/invocations", 405, "method_not_allowed"),
        ("GET", "/predict", 405, "method_not_allowed"),
    ],
)
def test_wrong_paths_and_methods_have_it_too(tiny_bundle: str, method: str, path: str, status: int, code: str) -> None:
    response = Client(plain_endpoint(tiny_bundle)[1]).request(method, path)
    found = response.json()
    message = found["error"] if isinstance(found["error"], str) else found["error"]["message"]
    assert (response.status_code, found) == (status, error_body(path, code, message))
    assert message


def test_openapi_names_every_route_once(tiny_bundle: str) -> None:
    document = Client(protocol_app(tiny_bundle)[1]).get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) == 16
    assert len({operation["operationId"] for operation in operations}) == 16
    assert "HTTPValidationError" not in json.dumps(document)
