"""Clients that are not ours, with a key, through the whole endpoint: the bird story's notebook, and boto3."""

import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import numpy as np
import numpy.typing as npt
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from PIL import Image

from models.predictor import Prediction, Predictor
from serve.door.keyfile import create_key
from tests.served import KEY, Served, served
from tests.serving import picture

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Reached:
    endpoint: Served
    predictor: Predictor
    aws_secret: str


@pytest.fixture(scope="module")
def reached(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    """An endpoint with its own defaults, a key from the environment and one for AWS's signatures from a file."""
    path = str(tmp_path_factory.mktemp("keys") / "keys.json")
    secret = create_key(path, "aws", aws=True).aws_secret
    assert secret is not None
    with served("--bundle", tiny_bundle, "--keys", path, "--max-replicas", "1") as endpoint:
        yield Reached(endpoint, Predictor.load(tiny_bundle), secret)


class NotebookPredictor:
    """Five lines in the place of the story's SageMaker predictor."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.headers = url, {"content-type": "application/json", "authorization": f"Bearer {key}"}

    def predict(self, images: npt.NDArray[Any]) -> Any:
        body = json.dumps({"instances": images.tolist()}).encode()
        return json.load(urllib.request.urlopen(urllib.request.Request(self.url, body, self.headers)))


def photographs(count: int) -> list[npt.NDArray[np.uint8]]:
    """As the notebook has them: 224 x 224 x 3."""
    opened = [Image.open(io.BytesIO(picture(seed, 224))) for seed in range(count)]
    return [np.asarray(image.convert("RGB").resize((224, 224))) for image in opened]


@pytest.mark.parametrize("path", ["/v1/models/eagleray:predict", "/endpoints/eagleray/invocations"])
def test_the_storys_loop(reached: Reached, path: str) -> None:
    """Floats that the notebook has divided by 255 already, image after image, and its own two expressions."""
    predictor = NotebookPredictor(f"{reached.endpoint.note.url}{path}", KEY)
    batches = [np.stack([photograph]) / 255 for photograph in photographs(4)]
    found = []
    for images in batches:
        predictions = np.array(predictor.predict(images)["predictions"])
        found.append(int(predictions.argmax(axis=1)[0]))
    answers = reached.predictor.predict(photographs(4))
    expected = [answer for answer in answers if isinstance(answer, Prediction)]
    assert found == [int(np.argmax(answer.probabilities)) for answer in expected]
    assert len(found) == 4


def test_the_storys_loop_without_a_right_key(reached: Reached) -> None:
    url = f"{reached.endpoint.note.url}/v1/models/eagleray:predict"
    images = np.stack(photographs(1)) / 255
    with pytest.raises(urllib.error.HTTPError) as refused:
        NotebookPredictor(url, "er_a-key-that-nobody-made").predict(images)
    assert refused.value.code == 403


def runtime(reached: Reached, secret: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=reached.endpoint.note.url,
        region_name="ap-southeast-2",
        aws_access_key_id="aws",
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_boto3s_sagemaker_client(reached: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    client, blob = runtime(reached, reached.aws_secret, monkeypatch), picture(1, 224)
    answer = client.invoke_endpoint(EndpointName="eagleray", ContentType="image/png", Body=blob)
    told = json.loads(answer["Body"].read())
    [expected] = reached.predictor.predict_bytes([blob])
    assert isinstance(expected, Prediction)
    assert told == pytest.approx(list(expected.probabilities), abs=1e-5)
    with pytest.raises(ClientError) as refused:
        runtime(reached, "a-wrong-secret-of-some-length", monkeypatch).invoke_endpoint(
            EndpointName="eagleray", ContentType="image/png", Body=blob
        )
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
