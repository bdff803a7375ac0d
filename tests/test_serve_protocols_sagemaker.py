"""SageMaker's container and runtime, with AWS's own client among the callers."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from serve.endpoint import Endpoint
from tests.protocols import Recorder, app_around, close, floats, on_loopback, pixels, protocol_app
from tests.serving import CLASSES, Client, picture

PATHS = ("/invocations", "/endpoints/eagleray/invocations")


@pytest.fixture(scope="module")
def served(tiny_bundle: str) -> tuple[Recorder, Client]:
    recorder, app = protocol_app(tiny_bundle, max_files=4)
    return recorder, Client(app)


@pytest.fixture
def recorder(served: tuple[Recorder, Client]) -> Recorder:
    return served[0]


@pytest.fixture
def client(served: tuple[Recorder, Client]) -> Client:
    return served[1]


def code_of(response: httpx.Response) -> str:
    """The code of an error, which stands where we say it and where AWS's clients look."""
    body = response.json()
    assert set(body) == {"error", "code", "message"}
    assert body["error"] == {"code": body["code"], "message": body["message"]}
    return str(body["code"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/png", "application/x-image", "Image/PNG; charset=binary", "image/png;q=1"]
)
def test_an_image_is_answered_with_its_probabilities(client: Client, recorder: Recorder, path: str, kind: str) -> None:
    response = client.post(path, content=picture(1), headers={"content-type": kind})
    assert response.status_code == 200
    assert close(response.json(), recorder.rows([picture(1)])[0])


@pytest.mark.parametrize(
    ("accept", "verbose"),
    [
        ("application/json;verbose", True),
        ("Application/JSON; Verbose", True),
        ("text/csv, application/json; verbose=1", True),
        ("*/*;verbose", True),
        ("application/json", False),
        ("application/json;q=0.5", False),
        ("text/verbose", False),
        ("text/csv;verbose", False),
        (";;,", False),
        ("*/*", False),
    ],
)
def test_the_verbose_form_is_asked_for_by_accept(client: Client, accept: str, verbose: bool) -> None:
    headers = {"content-type": "image/png", "accept": accept}
    found = client.post("/invocations", content=picture(1), headers=headers).json()
    if not verbose:
        assert len(found) == len(CLASSES)
        return
    assert set(found) == {"probabilities", "labels", "predicted_label"}
    assert found["labels"] == list(CLASSES)
    assert found["predicted_label"] == CLASSES[int(np.argmax(found["probabilities"]))]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bare", [False, True])
def test_json_is_answered_as_tensorflow_serving_does(client: Client, recorder: Recorder, path: str, bare: bool) -> None:
    images = [floats(pixels(1)).tolist(), {"b64": base64.b64encode(picture(2)).decode()}]
    response = client.post(path, json=images if bare else {"instances": images})
    assert set(response.json()) == {"predictions"}
    assert close(response.json()["predictions"], recorder.rows([pixels(1), picture(2)]))


@pytest.mark.parametrize("kind", ["text/csv", "application/x-npy", "multipart/form-data; boundary=x", "", ";", None])
def test_another_type_is_told_which_are_taken(client: Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = client.post("/invocations", content=picture(1), headers=headers)
    assert (response.status_code, code_of(response)) == (415, "unsupported_type")
    for taken in ("image/jpeg", "image/png", "application/x-image", "application/json"):
        assert taken in response.json()["message"]


@pytest.mark.parametrize(
    ("path", "content", "kind", "status", "code"),
    [
        ("/invocations", b"", "image/png", 400, "empty_body"),
        ("/invocations", b"", "application/json", 400, "empty_body"),
        ("/invocations", b"no image", "image/png", 422, "not_an_image"),
        ("/invocations", b"{", "application/json", 400, "bad_json"),
        ("/invocations", b"[0.5]", "application/json", 422, "bad_array"),
        ("/endpoints/other/invocations", picture(1), "image/png", 404, "unknown_model"),
    ],
)
def test_what_is_wrong_is_said(client: Client, path: str, content: bytes, kind: str, status: int, code: str) -> None:
    response = client.post(path, content=content, headers={"content-type": kind})
    assert (response.status_code, code_of(response)) == (status, code)


def test_ping_has_no_body(client: Client) -> None:
    response = client.get("/ping")
    assert (response.status_code, response.content) == (200, b"")
    loading = Client(app_around(Endpoint())).get("/ping")
    assert (loading.status_code, code_of(loading)) == (503, "not_ready")


def test_openapi_describes_the_types(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/invocations", "/endpoints/{name}/invocations"):
        content = paths[path]["post"]["requestBody"]["content"]
        assert set(content) == {"image/jpeg", "image/png", "application/x-image", "application/json"}
    assert "404" not in paths["/invocations"]["post"]["responses"]


@pytest.fixture(scope="module")
def runtime(tiny_bundle: str) -> Iterator[Any]:
    """AWS's client for SageMaker endpoints, aimed at ours."""
    _, app = protocol_app(tiny_bundle)
    with on_loopback(app) as url:
        yield boto3.client(
            "sagemaker-runtime",
            endpoint_url=url,
            region_name="ap-southeast-2",
            aws_access_key_id="ana",
            aws_secret_access_key="a secret",
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )


def test_boto3_gets_an_images_probabilities(runtime: Any, recorder: Recorder) -> None:
    answer = runtime.invoke_endpoint(EndpointName="eagleray", ContentType="image/png", Body=picture(1))
    assert answer["ContentType"] == "application/json"
    assert answer["InvokedProductionVariant"] == recorder.info.id
    assert close(json.loads(answer["Body"].read()), recorder.rows([picture(1)])[0])


def test_boto3_asks_for_the_verbose_form(runtime: Any) -> None:
    answer = runtime.invoke_endpoint(
        EndpointName="eagleray",
        ContentType="application/x-image",
        Accept="application/json;verbose",
        Body=picture(1),
    )
    assert json.loads(answer["Body"].read())["labels"] == list(CLASSES)


def test_boto3_sends_the_storys_arrays(runtime: Any, recorder: Recorder) -> None:
    body = json.dumps({"instances": [floats(pixels(4, 224)).tolist()]})
    answer = runtime.invoke_endpoint(EndpointName="eagleray", ContentType="application/json", Body=body)
    assert close(json.loads(answer["Body"].read())["predictions"], recorder.rows([pixels(4, 224)]))


@pytest.mark.parametrize(
    ("name", "kind", "status", "code", "words"),
    [
        ("other", "image/png", 404, "unknown_model", "'eagleray'"),
        ("eagleray", "text/csv", 415, "unsupported_type", "image/jpeg"),
        ("eagleray", "application/json", 400, "bad_json", "JSON"),
    ],
)
def test_boto3_shows_the_code_and_the_words(
    runtime: Any, name: str, kind: str, status: int, code: str, words: str
) -> None:
    with pytest.raises(ClientError) as caught:
        runtime.invoke_endpoint(EndpointName=name, ContentType=kind, Body=b"x")
    response = caught.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert response["Error"]["Code"] == code
    assert words in response["Error"]["Message"]
