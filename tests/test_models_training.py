"""The training loop: it learns, stops in time, keeps the best, resumes exactly, and never touches what it must not."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UserError
from models import augment, sources
from models.catalog import ModelConfig
from models.records import EpochScores
from models.training import NonFiniteLoss, TrainConfig, TrainingData, TrainingRun
from tests.models_toys import finish, subset, toy_data

CNN = ModelConfig(dropout=0.3)
RESNET = ModelConfig("resnet18", weights="none", base="finetune", dropout=0.3)
MOBILENET = ModelConfig("mobilenet_v2", weights="none", base="finetune", dropout=0.3)


def numbers(run: TrainingRun) -> list[dict[str, Any]]:
    return [{**scores.as_dict(), "seconds": 0, "cpu_seconds": 0} for scores in run.scores]


def state(run: TrainingRun) -> dict[str, torch.Tensor]:
    return run._learner.trained.state_dict()


def test_it_learns_and_says_what_it_saw() -> None:
    run = finish(TrainingRun(CNN, TrainConfig(epochs=12, batch_size=16, patience=0), toy_data()))
    first, last = run.scores[0], run.scores[-1]
    assert last.validation_loss < 0.7 * first.validation_loss
    assert last.best_validation_accuracy > 0.9
    assert [scores.epoch for scores in run.scores] == list(range(1, 13))
    assert {scores.images for scores in run.scores} == {64}
    assert set(last.as_dict()) == set(EpochScores.__dataclass_fields__)
    assert 1 / 3 <= last.validation_top_share < 0.5
    assert last.dead_units < 0.7
    assert last.cpu_seconds > 0


@pytest.mark.parametrize("dead", [0, 8, 32])
def test_units_that_never_fire_are_counted(dead: int) -> None:
    run = TrainingRun(CNN, TrainConfig(learning_rate=1e-9, epochs=1), toy_data())
    with torch.no_grad():
        state(run)["head.0.bias"].fill_(10)[:dead] = -1e6
    scores = run.run_epoch()
    assert scores.dead_units == dead / 32
    if dead == 32:  # nothing of the image comes through: all get the class of the largest bias
        assert scores.validation_top_share == 1


def test_the_most_named_class_is_the_most_named() -> None:
    run = TrainingRun(CNN, TrainConfig(), toy_data())
    with torch.no_grad():
        state(run)["head.3.bias"][1] = 1e6
    judged = run._learner.validate(run.data.validation, epoch=1)
    assert (judged.top_share, judged.accuracy) == (1, (run.data.validation.labels == 1).mean())
    assert run._learner.trained.head[1]._forward_hooks == {}  # type: ignore[union-attr, index]


@pytest.mark.parametrize("model", [CNN, RESNET, MOBILENET], ids=lambda config: config.model)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_killed_run_resumes_exactly(model: ModelConfig, optimizer: Any, tmp_path: Path) -> None:
    config = TrainConfig(
        epochs=4, batch_size=16, augment="strong", optimizer=optimizer, schedule="keras-time", balance="sampling"
    )
    data = toy_data(model.model, train=40, validation=16)
    unbroken = finish(TrainingRun(model, replace(config, patience=0), data))
    killed = TrainingRun(model, replace(config, patience=0), data)
    killed.run_epoch()
    killed.run_epoch()
    killed.save(str(tmp_path))
    torch.rand(7)  # whatever else the process draws must not matter
    resumed = TrainingRun(model, replace(config, patience=0), data)
    resumed.load(str(tmp_path))
    assert numbers(resumed) == numbers(killed)
    finish(resumed)
    assert numbers(resumed) == numbers(unbroken)
    assert all(torch.equal(value, state(unbroken)[name]) for name, value in state(resumed).items())


def test_a_seed_decides_everything_and_another_seed_differs() -> None:
    config = TrainConfig(epochs=2, augment="light")
    runs = [finish(TrainingRun(CNN, replace(config, seed=seed), toy_data())) for seed in (5, 5, 6)]
    assert numbers(runs[0]) == numbers(runs[1]) != numbers(runs[2])


def test_building_a_run_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    TrainingRun(CNN, TrainConfig(), toy_data())
    assert torch.equal(torch.rand(1), expected)


def scripted(run: TrainingRun, losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace validation losses by given ones; the first bias is set to the epoch, to tell snapshots apart."""
    original = run._learner.validate

    def validate(rows: Any, epoch: int) -> Any:
        with torch.no_grad():
            state(run)["head.0.bias"][0] = epoch
        return original(rows, epoch)._replace(loss=losses[epoch - 1], accuracy=epoch / 100)

    monkeypatch.setattr(run._learner, "validate", validate)


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "best"),
    [
        ([3, 2, 2.5, 2.4, 1], 2, 4, 2),
        ([3, 2, 2.5, 1, 1.5], 2, 5, 4),
        ([3, 2, 2, 2, 2], 3, 5, 2),
        ([1, 2, 2, 2, 2], 1, 2, 1),
        ([1, 2, 2, 2, 2], 0, 5, 1),
    ],
)
def test_early_stopping_keeps_the_best_epoch(
    losses: list[float], patience: int, epochs: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainingRun(CNN, TrainConfig(epochs=5, patience=patience), toy_data(train=8, validation=8))
    scripted(run, losses, monkeypatch)
    last = finish(run).scores[-1]
    assert (last.epoch, last.best_epoch) == (epochs, best)
    assert (last.best_validation_loss, last.best_validation_accuracy) == (min(losses[:epochs]), best / 100)
    assert float(run.best_model().state_dict()["head.0.bias"][0]) == best
    assert not run.best_model().training


def test_patience_outlives_a_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, data = TrainConfig(epochs=5, patience=2), toy_data(train=8, validation=8)
    run = TrainingRun(CNN, config, data)
    scripted(run, [1, 2, 3, 4, 5], monkeypatch)
    run.run_epoch()
    run.run_epoch()
    run.save(str(tmp_path))
    resumed = TrainingRun(CNN, config, data)
    resumed.load(str(tmp_path))
    scripted(resumed, [1, 2, 3, 4, 5], monkeypatch)
    assert finish(resumed).scores[-1].epoch == 3
    assert float(resumed.best_model().state_dict()["head.0.bias"][0]) == 1


def test_a_lost_loss_is_named() -> None:
    config = TrainConfig(learning_rate=1e30, optimizer="sgd", batch_size=8, epochs=3)
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, batch [23], learning rate 1e\+30; give a lower --learning-rate"):
        TrainingRun(CNN, config, toy_data()).run_epoch()


def test_a_lost_validation_loss_is_named() -> None:
    run = TrainingRun(CNN, TrainConfig(learning_rate=1e30, optimizer="sgd", batch_size=16), toy_data(train=16))
    with pytest.raises(NonFiniteLoss, match=r"validation loss .* after epoch 1, batch 1 .*learning rate 1e\+30"):
        run.run_epoch()


def test_validation_is_never_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = 0

    def counted(images: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal changed
        changed += len(images)
        return augment.augment(images, *rest)

    monkeypatch.setattr(sources, "augment", counted)
    finish(TrainingRun(CNN, TrainConfig(epochs=2, augment="strong"), toy_data()))
    assert changed == 2 * 64
    finish(TrainingRun(CNN, TrainConfig(epochs=2, augment="off"), toy_data()))
    assert changed == 2 * 64


def test_the_number_of_validation_images_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (1, 7, 32):
        monkeypatch.setattr(sources.Images, "chunk", chunk)
        results.append(TrainingRun(RESNET, TrainConfig(), toy_data("resnet18", train=16)).run_epoch().validation_loss)
    assert results[1:] == pytest.approx(results[:1] * 2, abs=1e-5)


def test_class_weights_reach_the_loss() -> None:
    data = toy_data()
    rare = np.flatnonzero(data.train.labels == 0)[:2]
    rows = np.concatenate((rare, np.flatnonzero(data.train.labels > 0)))
    labels = np.concatenate((data.train.labels, data.validation.labels))
    uneven = replace(data, train=subset("train", rows, labels))
    config = TrainConfig(learning_rate=0.003, epochs=8, patience=0)
    recall = []
    for balance in ("off", "weights", "sampling"):
        model = finish(TrainingRun(CNN, replace(config, balance=balance), uneven)).best_model()
        truth = uneven.validation.labels
        with torch.inference_mode():
            called = model(data.preprocess.to_batch(data.images[uneven.validation.rows])).argmax(1).numpy()
        recall.append((called[truth == 0] == 0).mean())
    assert min(recall[1:]) > recall[0]


def test_a_class_without_training_images_is_no_accident() -> None:
    data = toy_data()
    rows = np.flatnonzero(data.train.labels != 1)
    without = replace(data, train=subset("train", rows, np.concatenate((data.train.labels, data.validation.labels))))
    for balance in ("off", "weights", "sampling"):
        scores = TrainingRun(CNN, TrainConfig(epochs=1, balance=balance), without).run_epoch()
        assert math.isfinite(scores.training_loss)


def test_an_empty_split_says_what_to_do() -> None:
    data = toy_data()
    for name in ("train", "validation"):
        nothing: Any = {name: subset(name, np.zeros(0, int), data.train.labels)}
        empty = replace(data, **nothing)
        with pytest.raises(UserError, match=f"no images in the {name} split; give more images"):
            TrainingRun(CNN, TrainConfig(), empty)


def test_data_of_a_collection_leaves_the_test_rows_out() -> None:
    class Collection:
        classes, pack_path, resize = ("a", "b"), "/cache/packs/abc", toy_data().preprocess.resize

        def images(self) -> Any:
            return np.zeros((3, 32, 32, 3), np.uint8)

        def subset(self, split: str) -> Any:
            assert split != "test"
            return subset(split, np.array([0]), np.array([0]))

    data = TrainingData.of(Collection(), "resnet18")  # type: ignore[arg-type]
    assert data.pack_key == "abc"
    assert data.preprocess.mean != (0, 0, 0)
