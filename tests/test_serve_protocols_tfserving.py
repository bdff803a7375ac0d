"""TensorFlow Serving's REST API as its clients use it, the story's notebook among them."""

import base64
import json
import urllib.request
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from serve.endpoint import Endpoint
from tests.protocols import Recorder, app_around, close, floats, on_loopback, pixels, problem, protocol_app
from tests.serving import CLASSES, Client, picture

PATH = "/v1/models/eagleray:predict"


@pytest.fixture(scope="module")
def served(tiny_bundle: str) -> tuple[Recorder, Client]:
    recorder, app = protocol_app(tiny_bundle, max_files=4, max_body_mb=16)
    return recorder, Client(app)


@pytest.fixture
def recorder(served: tuple[Recorder, Client]) -> Recorder:
    served[0].seen.clear()
    return served[0]


@pytest.fixture
def client(served: tuple[Recorder, Client]) -> Client:
    return served[1]


def b64(blob: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(blob).decode()}


def test_the_storys_lines_work(tiny_bundle: str) -> None:
    """Its prediction loop, over a predictor of five lines."""
    recorder, app = protocol_app(tiny_bundle)
    with on_loopback(app) as url:

        def predict(images: npt.NDArray[Any]) -> Any:
            body = json.dumps({"instances": images.tolist()}).encode()
            request = urllib.request.Request(f"{url}{PATH}", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request) as response:
                return json.load(response)

        images = np.stack([floats(pixels(seed, 224)) for seed in range(2)])
        predictions = predict(images)["predictions"]
        labels = np.argmax(predictions, axis=1)
    assert all(np.array_equal(one, pixels(seed, 224)) for seed, one in enumerate(recorder.seen))
    expected = recorder.rows([pixels(0, 224), pixels(1, 224)])
    assert close(predictions, expected)
    assert labels.tolist() == np.argmax(expected, axis=1).tolist()


@pytest.mark.parametrize("path", [PATH, "/v1/models/eagleray/versions/1:predict"])
def test_instances_of_every_form(client: Client, recorder: Recorder, path: str) -> None:
    image = pixels(3)
    instances = [image.tolist(), floats(image).tolist(), {"input_1": image.tolist()}, {"image_bytes": b64(picture(1))}]
    response = client.post(path, json={"signature_name": "serving_default", "instances": instances})
    assert response.status_code == 200
    assert set(response.json()) == {"predictions"}
    assert close(response.json()["predictions"], recorder.rows([image, image, image, picture(1)]))
    assert [one if isinstance(one, bytes) else one.tolist() for one in recorder.seen][:4] == [
        *[image.tolist()] * 3,
        picture(1),
    ]


@pytest.mark.parametrize("named", [False, True])
def test_columns_are_answered_as_outputs(client: Client, recorder: Recorder, named: bool) -> None:
    column = [pixels(seed).tolist() for seed in range(3)]
    body = {"inputs": {"input_1": column} if named else column}
    response = client.post(PATH, content=json.dumps(body))  # without a content type, as TensorFlow Serving takes it
    assert set(response.json()) == {"outputs"}
    assert close(response.json()["outputs"], recorder.rows([pixels(seed) for seed in range(3)]))


def test_images_of_different_sizes_travel_together(client: Client) -> None:
    response = client.post(PATH, json={"instances": [pixels(1, 20).tolist(), pixels(2, 33).tolist()]})
    assert np.shape(response.json()["predictions"]) == (2, len(CLASSES))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("no json", 400, "bad_json"),
        ("", 400, "empty_body"),
        ("[]", 422, "not_an_object"),
        ("7", 422, "not_an_object"),
        ("{}", 422, "no_instances"),
        ('{"instances": [], "inputs": []}', 422, "no_instances"),
        ('{"instances": []}', 422, "no_images"),
        ('{"inputs": []}', 422, "no_images"),
        ('{"instances": {}}', 422, "bad_array"),
        ('{"inputs": {"a": [], "b": []}}', 422, "bad_array"),
        ('{"instances": ["aGk="]}', 422, "bad_array"),
        ('{"instances": [1.0]}', 422, "bad_array"),
        ('{"instances": [[1.0]]}', 422, "bad_array"),
        ('{"instances": [{"b64": 7}]}', 422, "bad_base64"),
        ('{"instances": [{"a": {"b64": "aGk="}, "b": 1}]}', 422, "bad_array"),
        ('{"instances": [{"b64": "aGk=", "b": 1}]}', 422, "bad_array"),
        ('{"instances": [{"a": {"a": {"b64": "aGk="}}}]}', 422, "bad_array"),
        ('{"instances": [1, 2, 3, 4, 5]}', 413, "too_many_images"),
        ('{"instances": [{"b64": "aGk="}]}', 422, "not_an_image"),
        ('{"instances": [1], "signature_name": "other"}', 422, "unknown_signature"),
        ('{"instances": [1], "signature_name": []}', 422, "unknown_signature"),
    ],
)
def test_what_is_wrong_is_a_text(client: Client, body: str, status: int, code: str) -> None:
    assert problem(client.post(PATH, content=body)) == (status, code)


def test_a_failed_image_is_named_by_its_number(client: Client) -> None:
    response = client.post(PATH, json={"instances": [b64(picture(1)), b64(b""), b64(picture(1)[:90])]})
    assert problem(response) == (422, "empty")
    assert "image 1 " in response.json()["error"]
    assert "2 of 3" in response.json()["error"]


def test_a_compressed_body_is_refused(client: Client) -> None:
    response = client.post(PATH, content=b"x", headers={"content-encoding": "gzip"})
    assert problem(response) == (415, "compressed_body")


def test_the_body_has_its_limit(client: Client) -> None:
    assert problem(client.post(PATH, content=b"[" * 17 * 2**20)) == (413, "body_too_large")


def test_the_status_is_the_published_one(client: Client) -> None:
    status = {"error_code": "OK", "error_message": ""}
    expected = {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": status}]}
    for path in ("/v1/models/eagleray", "/v1/models/eagleray/versions/1"):
        assert client.get(path).json() == expected


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "word"),
    [
        ("POST", "/v1/models/half_plus_two:predict", 404, "unknown_model", "'eagleray'"),
        ("POST", "/v1/models/eagleray/versions/2:predict", 404, "unknown_version", "1"),
        ("GET", "/v1/models/other", 404, "unknown_model", "'eagleray'"),
        ("GET", "/v1/models/eagleray/versions/7", 404, "unknown_version", "1"),
        ("GET", "/v1/models/eagleray:predict", 405, "method_not_allowed", "POST"),
        ("GET", "/v1/models/eagleray/versions/1:predict", 405, "method_not_allowed", "POST"),
    ],
)
def test_a_wrong_name_is_told_the_right_one(
    client: Client, method: str, path: str, status: int, code: str, word: str
) -> None:
    response = client.request(method, path)
    assert problem(response) == (status, code)
    assert word in response.json()["error"]


def test_an_endpoint_without_a_model_is_not_ready() -> None:
    client = Client(app_around(Endpoint()))
    assert problem(client.get("/v1/models/eagleray")) == (503, "not_ready")
    assert problem(client.post(PATH, content=b"{}")) == (503, "not_ready")


def test_a_model_may_have_another_name(tiny_bundle: str) -> None:
    client = Client(protocol_app(tiny_bundle, name="birds-7")[1])
    assert client.get("/v1/models/birds-7").status_code == 200
    assert problem(client.get("/v1/models/eagleray")) == (404, "unknown_model")


def test_openapi_describes_what_is_taken_and_answered(client: Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/models/{name}:predict"]["post"]
    assert {"200", "400", "404", "408", "413", "415", "422", "500", "503"} <= set(operation["responses"])
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert np.shape(client.post(PATH, json=example).json()["predictions"]) == (1, len(CLASSES))
    assert "HTTPValidationError" not in json.dumps(document)
