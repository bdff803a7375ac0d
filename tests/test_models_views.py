"""Augmentation over a frozen base: a few views of each training image, computed once and shared by all trials."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from models import engine, sources
from models.augment import augment, draw_view
from models.catalog import ModelConfig, build_base
from models.features import FrozenBase
from models.sources import KeptFeatures
from models.training import TrainConfig, TrainingData, TrainingRun
from tests.models_toys import subset, toy_data, write_backbone

TRAIN = TrainConfig(epochs=5, batch_size=8, augment="strong", views=3, patience=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    file = write_backbone(tmp_path_factory.mktemp("weights") / "base.pth")
    return ModelConfig("mobilenet_v2", weights=file, dense_units=8)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """16 training rows among 40, in no order, as a split leaves them."""
    whole = toy_data("mobilenet_v2", train=32, validation=8)
    rows = np.random.default_rng(0).permutation(40)
    labels = np.concatenate((whole.train.labels, whole.validation.labels))
    return replace(
        whole, train=subset("train", rows[:16], labels), validation=subset("validation", rows[16:24], labels)
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the base was given."""
    counts: list[int] = []
    load = engine.load

    def counted(*args: Any) -> engine.Forward:
        forward = load(*args)

        def run(images: Tensor) -> Tensor:
            counts.append(len(images))
            return forward(images)

        return run

    monkeypatch.setattr(engine, "load", counted)
    return counts


def train(config: ModelConfig, how: TrainConfig, data: TrainingData, cache: Path) -> TrainingRun:
    run = TrainingRun(config, how, data, cache_dir=str(cache))
    while not run.finished:
        run.run_epoch()
    return run


def test_the_base_runs_once_for_each_view_whatever_the_trials(
    config: ModelConfig, data: TrainingData, tmp_path: Path, seen: list[int]
) -> None:
    train(config, TRAIN, data, tmp_path)
    assert sum(seen) == 40 + 3 * 16  # every row as it is, and each view of the training rows
    seen.clear()
    train(replace(config, dense_units=16), replace(TRAIN, learning_rate=0.01, epochs=7), data, tmp_path)
    train(config, replace(TRAIN, seed=1, balance="sampling"), data, tmp_path)
    train(config, replace(TRAIN, epochs=2, views=8), data, tmp_path)
    assert seen == []
    train(config, replace(TRAIN, augment="light", epochs=2), data, tmp_path)
    assert sum(seen) == 2 * 16  # another strength; no more views than there are epochs


def test_a_view_is_the_base_over_the_changed_images(config: ModelConfig, data: TrainingData, tmp_path: Path) -> None:
    rows = data.train.rows
    views = FrozenBase(config, data.images, data.preprocess, cache_dir=str(tmp_path)).views(rows, "strong", 3)
    base = build_base(config).eval()
    for number, view in enumerate(views):
        assert view.shape == (16, 1280)
        changed = augment(data.preprocess.to_unit(data.images[rows]), draw_view(40, number)[rows], "strong")
        with torch.inference_mode():
            direct = base(data.preprocess.normalise_(changed)).numpy()
        np.testing.assert_allclose(view, direct, rtol=0, atol=1e-4 * np.abs(direct).max())
    scale = np.abs(views[0]).max()
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(views[one] - views[other]).max() > 1e-3 * scale


def test_epochs_take_the_views_in_turn(
    config: ModelConfig, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, Tensor, Tensor]] = []
    training = KeptFeatures.training

    def noted(self: KeptFeatures, rows: Any, draws: Tensor | None, epoch: int) -> Tensor:
        batch = training(self, rows, draws, epoch)
        taken.extend((epoch, int(row), features) for row, features in zip(rows, batch, strict=True))  # type: ignore[misc]
        return batch

    monkeypatch.setattr(sources.KeptFeatures, "training", noted)
    run = train(config, TRAIN, data, tmp_path)
    base = FrozenBase(config, data.images, data.preprocess, cache_dir=str(tmp_path))
    views = base.views(data.train.rows, "strong", 3)
    places = {int(row): place for place, row in enumerate(data.train.rows)}
    assert len(taken) == 5 * 16
    for epoch, row, features in taken:
        assert np.array_equal(features.numpy(), views[(epoch - 1) % 3][places[row]])  # type: ignore[index]
    # Scored on the images as they are.
    plain = FrozenBase(config, data.images, data.preprocess, cache_dir=str(tmp_path)).features()
    assert np.array_equal(run._learner._source.plain(data.validation.rows).numpy(), plain[data.validation.rows])


def test_a_view_under_way_elsewhere_is_left_for_later(
    config: ModelConfig, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = FrozenBase(config, data.images, data.preprocess, cache_dir=str(tmp_path))
    base.views(data.train.rows, "strong", 1)
    (lock,) = (tmp_path / "features").glob("*.lock")
    (file,) = (tmp_path / "features").glob("*.npy")
    other = FileLock(lock)  # another trial that is at the first view
    other.acquire()
    made: list[int] = []
    compute = FrozenBase._compute

    def counted(self: FrozenBase, *args: Any) -> None:
        made.append(args[4])
        compute(self, *args)
        if len(made) == 2:  # the others are there: only now the first one comes
            other.release()

    monkeypatch.setattr(FrozenBase, "_compute", counted)
    content = file.read_bytes()
    views = base.views(data.train.rows, "strong", 3)
    assert made == [1, 2]
    assert file.read_bytes() == content
    assert len(views) == 3


def test_there_is_at_least_one_view() -> None:
    with pytest.raises(ValueError, match="views must be >= 1, got 0"):
        TrainConfig(views=0)
