"""What a finished trial becomes: a bundle that names its engine, knows its own confidences and can be checked again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.collection import Collection
from data.errors import UserError
from data.images import Failure
from models.bundle import read_info
from models.calibration import Calibration
from models.engine import fastest
from models.golden import MOST, check_golden, read_golden
from models.predictor import Prediction, Predictor
from tune import bundling
from tune.report import verdicts
from tune.trial import Job

pytestmark = pytest.mark.ray  # Job's module imports it


@pytest.fixture
def checkpoint(job: Job, tmp_path: Path) -> str:
    run = job.start()
    run.run_epoch()
    run.save(str(tmp_path / "checkpoint"))
    return str(tmp_path / "checkpoint")


def test_a_bundle_holds_what_it_takes_to_check_it_again(job: Job, checkpoint: str, tmp_path: Path) -> None:
    scored = bundling.make_bundle(job, checkpoint, str(tmp_path / "b"))
    info, collection = read_info(str(tmp_path / "b")), job.collection
    assert info == scored.info
    assert info.metrics == {**scored.metrics, "data": info.metrics["data"]}
    assert info.metrics["data"]["per_split"] == {"test": 16, "train": 64, "validation": 16}
    assert info.metrics["data"]["groups_per_split"] == {"test": 2, "train": 8, "validation": 2}
    assert info.engine == fastest(torch.device("cpu")) == "onnxruntime"
    predictor = Predictor.load(str(tmp_path / "b"))

    validation = collection.subset("validation")
    answers = predictor.predict([Path(path).read_bytes() for path in validation.paths])
    tops = [answer.probability for answer in answers if isinstance(answer, Prediction)]
    assert np.abs(np.array(info.confidences) - np.histogram(tops, 20, (0, 1))[0]).sum() <= 2  # one on an edge
    assert sum(info.confidences) == len(validation.rows)

    golden = read_golden(str(tmp_path / "b"))
    assert golden is not None
    result = check_golden(predictor, golden)
    assert result.problems == ()
    test = collection.subset("test")
    assert result.images == min(MOST, len(test.rows))
    assert {answer.label for answer in golden.answers} == {collection.classes[label] for label in test.labels}
    blobs = {Path(path).read_bytes(): label for path, label in zip(test.paths, test.labels, strict=True)}
    found = {
        predicted.probabilities for predicted in predictor.predict(list(blobs)) if isinstance(predicted, Prediction)
    }
    for answer in golden.answers:  # of test images, decoded from their files
        assert any(np.allclose(list(answer.probabilities.values()), other, atol=1e-5) for other in found)


@pytest.mark.parametrize("better", [True, False])
def test_nothing_is_confident_of_a_model_that_beats_no_guess(
    better: bool, job: Job, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "calibrate", lambda *_: Calibration(1.0, {"confident": 0.5}))
    monkeypatch.setattr(bundling, "beats_majority", lambda scores: better and scores["n"] == 16)
    scored = bundling.make_bundle(job, checkpoint, str(tmp_path / "b"))
    assert scored.info.thresholds == {"confident": 0.5 if better else None}
    predictor = Predictor.load(str(tmp_path / "b"))
    (answer,) = predictor.predict([Path(job.collection.subset("test").paths[0]).read_bytes()])
    assert isinstance(answer, Prediction)
    assert answer.confident is (True if better else None)
    golden = read_golden(str(tmp_path / "b"))
    assert golden is not None
    assert check_golden(predictor, golden).problems == ()


def test_images_without_an_answer_are_no_golden_ones_and_have_no_confidence(
    job: Job, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: Predictor, images: list[object]) -> list[Failure]:
        return [Failure("not_a_number", "no number")] * len(images)

    monkeypatch.setattr(Predictor, "predict", silent)
    scored = bundling.make_bundle(job, checkpoint, str(tmp_path / "b"))
    assert (scored.info.confidences, scored.info.golden) == ([0] * 20, [])
    failures = scored.metrics["test"]["failures"]
    assert [failure["path"] for failure in failures] == list(job.collection.subset("test").paths)
    assert {failure["code"] for failure in failures} == {"not_a_number"}
    assert scored.metrics["test"]["log_loss"] == pytest.approx(np.log(2))


def test_a_split_without_images_is_said(job: Job, checkpoint: str, tmp_path: Path) -> None:
    table = job.collection.table
    without = {**vars(job.collection), "table": table[table["split"] != "test"]}
    fields = {name: without[name] for name in Collection.__dataclass_fields__}
    with pytest.raises(UserError, match="no images in the test split; give more groups"):
        bundling.make_bundle(Job(job.model, job.train, Collection(**fields)), checkpoint, str(tmp_path / "b"))


def test_the_verdict_says_why_nothing_is_confident() -> None:
    scores = {"accuracy_interval": [0.5, 0.8], "majority_rate": 0.6, "majority_label": "eel", "n": 20}
    nothing = {"test": scores, "thresholds": {"confident": None}}
    (line,) = verdicts(nothing)
    assert line.startswith("not shown to be better than always naming eel (0.600 on 20 test images), so no answer is")
    (line,) = verdicts({**nothing, "test": {**scores, "accuracy_interval": [0.7, 0.8]}})
    assert line == "no probability is called confident: the validation images are too few or too often wrong"
