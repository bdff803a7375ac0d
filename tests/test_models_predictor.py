"""The only way from a picture to an answer: in order, failures as values, alone as in a batch."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.images import Failure, encode_png, resize
from data.resizing import Resize
from models.bundle import write_bundle
from models.catalog import Classifier, ModelConfig
from models.inference import logits_of_rows, softmax
from models.predictor import Image, Prediction, Predictor
from models.training import TrainConfig, TrainingData, TrainingRun
from tests.images_zoo import zoo
from tests.models_toys import CLASSES, finish, toy_data, toy_images


@pytest.fixture(scope="module")
def trained() -> tuple[Classifier, TrainingData]:
    """A network with BatchNorm, in which a batch could leak from one image to the next."""
    data = toy_data("resnet18", train=32, validation=32)
    run = TrainingRun(ModelConfig("resnet18", weights="none", base="finetune"), TrainConfig(epochs=3), data)
    return finish(run).best_model(), data


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def predictor(
    request: pytest.FixtureRequest, trained: tuple[Classifier, TrainingData], tmp_path_factory: pytest.TempPathFactory
) -> Predictor:
    model, data = trained
    folder = str(tmp_path_factory.mktemp("run") / "bundle")
    write_bundle(
        folder,
        model,
        classes=CLASSES,
        preprocess=data.preprocess,
        engine=request.param,
        temperature=2.0,
        thresholds={"confident": 0.5},
    )
    predictor = Predictor.load(folder, threads=1)
    assert predictor.engine == predictor.info.engine == request.param
    return predictor


def images_of_many_sizes(n: int = 40) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return [
        np.ascontiguousarray(resize(image, Resize(int(generator.integers(16, 70))))[: int(generator.integers(12, 16))])
        for image in toy_images(n)[0]
    ]


def close(one: Prediction | Failure, other: Prediction | Failure) -> bool:
    if isinstance(one, Failure) or isinstance(other, Failure):
        return one == other
    return one.label == other.label and bool(np.allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-5))


def test_alone_and_in_a_batch_an_image_gets_the_same_answer(predictor: Predictor) -> None:
    images = images_of_many_sizes()
    blobs: list[bytes | Failure] = [encode_png(image) for image in images]
    together = predictor.predict_bytes(blobs)
    assert len(together) == 40
    for image, blob, answer in zip(images, blobs, together, strict=True):
        assert isinstance(answer, Prediction)
        assert close(answer, predictor.predict_bytes([blob])[0])
        assert close(answer, predictor.predict_arrays([image])[0])
    both: list[Image] = [images[place] if place % 3 else blobs[place] for place in range(40)]
    assert all(map(close, together, predictor.predict(both)))
    assert len({answer.label for answer in together if isinstance(answer, Prediction)}) > 1


def test_a_prediction_is_consistent(predictor: Predictor) -> None:
    for answer in predictor.predict_arrays(images_of_many_sizes(8)):
        assert isinstance(answer, Prediction)
        assert sum(answer.probabilities) == pytest.approx(1, abs=1e-12)
        assert answer.probability == max(answer.probabilities)
        assert answer.label == CLASSES[answer.probabilities.index(answer.probability)]
        assert answer.confident == (answer.probability >= 0.5)
        json.dumps(answer.probabilities)


def test_failures_stay_in_their_place_and_harm_no_neighbour(predictor: Predictor) -> None:
    good: list[bytes | Failure] = [encode_png(image) for image in images_of_many_sizes(6)]
    unread = Failure("unreadable", "gone")
    blobs = [b"", good[0], b"no image", good[1], unread, good[2], encode_png(np.zeros((1, 1, 3), np.uint8)), good[3]]
    answers = predictor.predict_bytes(blobs)
    assert [answer.code if isinstance(answer, Failure) else "" for answer in answers] == [
        "empty", "", "not_an_image", "", "unreadable", "", "too_small", "",
    ]  # fmt: skip
    assert answers[4] is unread
    for place, blob in ((1, good[0]), (3, good[1]), (5, good[2]), (7, good[3])):
        assert close(answers[place], predictor.predict_bytes([blob])[0])


def test_every_nasty_image_gets_its_named_answer(predictor: Predictor) -> None:
    """Each between two good neighbours, and once alone."""
    good = encode_png(np.full((40, 40, 3), 90, np.uint8))
    nasty = zoo()
    together = predictor.predict_bytes([blob for one in nasty for blob in (good, one.blob)])
    expected = predictor.predict_bytes([good])[0]
    for one, neighbour, answer in zip(nasty, together[::2], together[1::2], strict=True):
        assert (answer.code if isinstance(answer, Failure) else "ok") == one.expected, one.name
        assert close(predictor.predict_bytes([one.blob])[0], answer), one.name
        assert close(neighbour, expected), one.name


def test_wrong_arrays_are_failures(predictor: Predictor) -> None:
    fine = images_of_many_sizes(1)[0]
    wrong: list[Any] = [np.zeros((20, 20)), np.zeros((20, 20, 3), np.float32), np.zeros((2, 2, 3), np.uint8)]
    answers = predictor.predict_arrays([wrong[0], fine, *wrong[1:]])
    assert [isinstance(answer, Failure) for answer in answers] == [True, False, True, True]


def test_nothing_and_only_failures_are_answered(predictor: Predictor) -> None:
    assert predictor.predict_bytes([]) == []
    assert predictor.predict_arrays([]) == []
    assert all(isinstance(answer, Failure) for answer in predictor.predict_bytes([b""] * 40))


def test_the_temperature_is_applied_and_rows_agree_with_training(
    predictor: Predictor, trained: tuple[Classifier, TrainingData]
) -> None:
    (model, data), (images, _) = trained, toy_images(8)
    with torch.inference_mode():
        plain = softmax(model(data.preprocess.to_batch(images)).double().numpy(), 2.0)
    rows = softmax(logits_of_rows(model, images, np.arange(8), data.preprocess, named=predictor.engine), 2.0)
    for one, other, answer in zip(plain, rows, predictor.predict_arrays(list(images)), strict=True):
        assert isinstance(answer, Prediction)
        np.testing.assert_allclose(answer.probabilities, one, atol=1e-5)
        np.testing.assert_allclose(answer.probabilities, other, atol=1e-5)
    assert logits_of_rows(model, images, np.zeros(0, int), data.preprocess).shape == (0, 3)


def test_a_network_that_gives_no_number_is_a_failure(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 3)
        logits[0] = float("nan")
        logits[2] = float("inf")
        return logits

    monkeypatch.setattr(predictor._network, "_forward", broken)
    answers = predictor.predict_arrays(images_of_many_sizes(4))
    assert [isinstance(answer, Failure) for answer in answers] == [True, False, True, False]
    assert isinstance(answers[0], Failure)
    assert answers[0].code == "not_a_number"


def test_pixels_of_the_networks_size_are_taken_as_they_lie(predictor: Predictor) -> None:
    """They are not resized; how they lie in memory, and whether they may be written to, does not matter."""
    images, _ = toy_images(6)
    expected = predictor.predict_bytes([encode_png(image) for image in images])
    kept = images.copy()
    images.setflags(write=False)
    for view in (images, np.asfortranarray(kept), kept[:, ::-1].copy()[:, ::-1]):
        assert all(map(close, predictor.predict_arrays(list(view)), expected))
    assert np.array_equal(images, kept)
    bytes_like: Any = memoryview(encode_png(kept[0]))
    assert close(predictor.predict([bytes_like])[0], expected[0])


def test_threads_may_ask_at_the_same_time(predictor: Predictor) -> None:
    images = images_of_many_sizes(24)
    expected = predictor.predict_arrays(images)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: predictor.predict(images[start : start + 3]), range(0, 24, 3)))
    assert all(map(close, [answer for part in parts for answer in part], expected))


def test_without_a_threshold_nobody_is_called_confident(tmp_path: Path) -> None:
    data = toy_data()
    run = TrainingRun(ModelConfig(), TrainConfig(epochs=1), data)
    run.run_epoch()
    write_bundle(str(tmp_path / "b"), run.best_model(), classes=CLASSES, preprocess=data.preprocess)
    (answer,) = Predictor.load(str(tmp_path / "b")).predict_arrays([data.images[0]])
    assert isinstance(answer, Prediction)
    assert answer.confident is None


def test_a_device_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device cuda: torch finds no GPU on this machine; use --device cpu"):
        Predictor.load(str(tmp_path / "b"), device="cuda")
