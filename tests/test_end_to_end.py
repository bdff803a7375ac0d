"""The number in the report is the number that the endpoint serves."""

import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from data.collection import DataConfig
from models.predictor import Prediction, Predictor
from models.training import TrainConfig
from tests.commands import Command
from tests.serving import free_port
from tune import runs
from tune.settings import SearchConfig

pytestmark = pytest.mark.ray

KEY = "er_a-key-that-the-tests-know"


@pytest.fixture
def searched(ray_cluster: None, photos: Path, cache_dir: str, tmp_path: Path) -> Path:
    """A finished search over the test pictures."""
    config = SearchConfig(
        data=DataConfig(data=str(photos / "labels.csv"), image_size=24, cache_dir=cache_dir),
        train=TrainConfig(epochs=5, batch_size=16),
        out=str(tmp_path / "run"),
        trials=2,
    )
    assert runs.search(config) == 0
    return tmp_path / "run"


def post(client: httpx.Client, pictures: list[bytes]) -> list[dict[str, Any]]:
    answer = client.post("/predict", files=[("files", (f"{n}.png", blob)) for n, blob in enumerate(pictures)])
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


def test_the_endpoint_gives_the_accuracy_of_the_report(searched: Path) -> None:
    report = json.loads((searched / "report.json").read_text())
    manifest = pd.read_csv(searched / "manifest.csv")
    test = manifest[manifest["split"] == "test"]
    pictures = [Path(path).read_bytes() for path in test["path"]]
    predicted = Predictor.load(str(searched / "bundle")).predict_bytes(pictures)

    port = free_port()
    command = ["serve/app.py", "--bundle", str(searched / "bundle"), "--port", str(port), "--max-replicas", "1"]
    with Command(*command, env={"EAGLERAY_KEYS": f"tester={KEY}"}) as server:
        server.wait_for("answers at")
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as client:
            assert client.get("/model").json()["id"] == report["bundle"]["id"]
            one_by_one = [client.post("/predict", content=blob).json()["predictions"][0] for blob in pictures]
            together = post(client, pictures)
        server.signal(signal.SIGINT)
        assert server.end() == 0

    for answers in (one_by_one, together):
        labels = [answer["label"] for answer in answers]
        accuracy = sum(label == truth for label, truth in zip(labels, test["label"], strict=True)) / len(labels)
        assert accuracy == pytest.approx(report["test"]["accuracy"], abs=1e-12)
        for answer, expected in zip(answers, predicted, strict=True):
            assert isinstance(expected, Prediction)
            assert answer["label"] == expected.label
            assert list(answer["probabilities"].values()) == pytest.approx(list(expected.probabilities), abs=1e-5)
