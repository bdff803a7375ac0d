"""The Open Inference Protocol v2 as published, with Triton's binary extension."""

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from serve.endpoint import Endpoint
from tests.protocols import (
    INFER,
    Recorder,
    app_around,
    binary,
    close,
    elements,
    floats,
    pixels,
    problem,
    protocol_app,
    tensor,
)
from tests.serving import CLASSES, Client, picture


@pytest.fixture(scope="module")
def served(tiny_bundle: str) -> tuple[Recorder, Client]:
    recorder, app = protocol_app(tiny_bundle, max_files=4)
    return recorder, Client(app)


@pytest.fixture
def recorder(served: tuple[Recorder, Client]) -> Recorder:
    served[0].seen.clear()
    return served[0]


@pytest.fixture
def client(served: tuple[Recorder, Client]) -> Client:
    return served[1]


def outputs_of(response: httpx.Response) -> dict[str, Any]:
    """name -> the output, after a look at what the protocol promises of an answer."""
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["model_name"], body["model_version"]) == ("eagleray", "1")
    for output in body["outputs"]:
        assert set(output) == {"name", "datatype", "shape", "data"}
        assert len(output["data"]) == np.prod(output["shape"])
    return {output["name"]: output for output in body["outputs"]}


def check(response: httpx.Response, recorder: Recorder, images: list[Any]) -> None:
    outputs = outputs_of(response)
    rows = recorder.rows(images)
    assert (outputs["probabilities"]["datatype"], outputs["label"]["datatype"]) == ("FP32", "BYTES")
    assert outputs["probabilities"]["shape"] == [len(images), len(CLASSES)]
    assert close(np.reshape(outputs["probabilities"]["data"], (-1, len(CLASSES))), rows)
    assert outputs["label"]["data"] == [CLASSES[int(np.argmax(row))] for row in rows]


def test_health_and_metadata_are_the_published_ones(client: Client, recorder: Recorder) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    for path in ("/v2", "/v2/"):
        server = client.get(path).json()
        assert server == {"name": "eagleray", "version": "1", "extensions": ["binary_tensor_data"]}
    for path in ("/v2/models/eagleray", "/v2/models/eagleray/versions/1"):
        model = client.get(path).json()
        platform = f"eagleray_{recorder.info.engine}"
        assert (model["name"], model["versions"], model["platform"]) == ("eagleray", ["1"], platform)
        assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
        assert model["outputs"] == [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ]
        assert client.get(f"{path}/ready").json() == {"name": "eagleray", "ready": True}


def test_without_a_model_it_lives_but_is_not_ready() -> None:
    client = Client(app_around(Endpoint()))
    assert client.get("/v2/health/live").status_code == 200
    for path in ("/v2/health/ready", "/v2/models/eagleray", "/v2/models/eagleray/ready"):
        assert problem(client.get(path)) == (503, "not_ready")
    assert problem(client.post(INFER, content=b"{}")) == (503, "not_ready")


@pytest.mark.parametrize("datatype", ["UINT8", "INT32", "INT64", "FP32", "FP64"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("path", [INFER, "/v2/models/eagleray/versions/1/infer"])
def test_tensors_in_json(client: Client, recorder: Recorder, datatype: str, flat: bool, path: str) -> None:
    images = np.stack([pixels(1), pixels(2)])
    values = images / 255 if datatype.startswith("FP") else images
    data = values.ravel().tolist() if flat else values.tolist()
    request = {"id": "42", "inputs": [tensor(datatype, [2, 32, 32, 3], data)]}
    response = client.post(path, json=request)
    assert np.array_equal(np.stack(recorder.seen), images)
    check(response, recorder, [pixels(1), pixels(2)])
    assert response.json()["id"] == "42"
    assert response.json()["parameters"] == {"model": recorder.info.id}


@pytest.mark.parametrize(
    ("datatype", "kind"), [("UINT8", "u1"), ("INT32", "<i4"), ("INT64", "<i8"), ("FP32", "<f4"), ("FP64", "<f8")]
)
def test_binary_tensors(client: Client, recorder: Recorder, datatype: str, kind: str) -> None:
    images = np.stack([pixels(1), pixels(2), pixels(3)])
    raw = (images / 255 if datatype.startswith("FP") else images).astype(kind).tobytes()
    response = binary(client, {"inputs": [tensor(datatype, [3, 32, 32, 3], binary_data_size=len(raw))]}, raw)
    assert np.array_equal(np.stack(recorder.seen), images)
    check(response, recorder, list(images))
    assert "id" not in response.json()


def test_one_image_needs_no_batch(client: Client, recorder: Recorder) -> None:
    request = {"inputs": [tensor("UINT8", [32, 32, 3], pixels(1).tolist())]}
    check(client.post(INFER, json=request), recorder, [pixels(1)])


def test_floats_in_json_may_lack_their_points(client: Client, recorder: Recorder) -> None:
    request = {"inputs": [tensor("FP32", [8, 8, 3], [0, 1, 1] * 64)]}
    client.post(INFER, json=request)
    assert recorder.seen[0][0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_encoded_images(client: Client, recorder: Recorder, shape: list[int]) -> None:
    texts = [base64.b64encode(picture(seed)).decode() for seed in (1, 2)]
    data = [[text] for text in texts] if len(shape) == 2 else texts
    check(client.post(INFER, json={"inputs": [tensor("BYTES", shape, data)]}), recorder, [picture(1), picture(2)])
    check(client.post(INFER, json={"inputs": [tensor("BYTES", shape, texts)]}), recorder, [picture(1), picture(2)])
    raw = elements(picture(1), picture(2))
    request = {"inputs": [tensor("BYTES", shape, binary_data_size=len(raw))]}
    check(binary(client, request, raw), recorder, [picture(1), picture(2)])


def test_outputs_are_those_that_were_asked_for(client: Client) -> None:
    image = tensor("UINT8", [32, 32, 3], pixels(1).tolist())
    for names in (["label"], ["label", "probabilities"], ["probabilities"]):
        request = {"inputs": [image], "outputs": [{"name": name} for name in names]}
        assert list(outputs_of(client.post(INFER, json=request))) == names
    assert list(outputs_of(client.post(INFER, json={"inputs": [image], "outputs": []}))) == ["probabilities", "label"]


@pytest.mark.parametrize(
    ("asked", "binary_ones"),
    [
        ({"parameters": {"binary_data_output": True}}, ["probabilities", "label"]),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": True}}, {"name": "probabilities"}]}, ["label"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "probabilities"}],
            },
            ["probabilities"],
        ),
    ],
)
def test_binary_outputs_follow_the_json(
    client: Client, recorder: Recorder, asked: dict[str, Any], binary_ones: list[str]
) -> None:
    request = {"inputs": [tensor("UINT8", [32, 32, 3], pixels(1).tolist())], **asked}
    response = client.post(INFER, json=request)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    head, rest = json.loads(response.content[:length]), response.content[length:]
    (row,) = recorder.rows([pixels(1)])
    for output in head["outputs"]:
        assert ("data" in output) == (output["name"] not in binary_ones)
        if output["name"] in binary_ones:
            size = output["parameters"]["binary_data_size"]
            raw, rest = rest[:size], rest[size:]
            if output["name"] == "label":
                assert raw == elements(CLASSES[int(np.argmax(row))].encode())
            else:
                assert close(np.frombuffer(raw, "<f4"), row)
    assert rest == b""


def test_floats_reach_the_model_as_the_pixels_they_were(client: Client, recorder: Recorder) -> None:
    image = floats(pixels(9)).astype("<f4")
    binary(client, {"inputs": [tensor("FP32", [32, 32, 3], binary_data_size=image.nbytes)]}, image.tobytes())
    assert np.array_equal(recorder.seen[0], pixels(9))


@pytest.mark.parametrize(
    ("method", "path", "code", "word"),
    [
        ("GET", "/v2/models/resnet", "unknown_model", "'eagleray'"),
        ("GET", "/v2/models/resnet/ready", "unknown_model", "'eagleray'"),
        ("POST", "/v2/models/resnet/infer", "unknown_model", "'eagleray'"),
        ("GET", "/v2/models/eagleray/versions/3", "unknown_version", "1"),
        ("GET", "/v2/models/eagleray/versions/3/ready", "unknown_version", "1"),
        ("POST", "/v2/models/eagleray/versions/3/infer", "unknown_version", "1"),
    ],
)
def test_a_wrong_name_is_told_the_right_one(client: Client, method: str, path: str, code: str, word: str) -> None:
    response = client.request(method, path)
    assert problem(response) == (404, code)
    assert word in response.json()["error"]


def test_openapi_describes_what_is_taken_and_answered(client: Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert {"200", "400", "404", "408", "413", "415", "422", "500", "503"} <= set(operation["responses"])
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "application/octet-stream"}
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert set(outputs_of(client.post(INFER, json=example))) == {"probabilities", "label"}
