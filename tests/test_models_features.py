"""Features of a frozen base: computed once, the same as the direct way, and kept safely."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.resizing import Resize
from models import engine
from models.catalog import ModelConfig
from models.features import FrozenBase, content_key
from models.preprocess import Preprocess
from models.training import TrainConfig, TrainingRun, load_best
from tests.models_toys import toy_data, toy_images, write_backbone

WHAT = Preprocess.for_model("mobilenet_v2", Resize(32))


@pytest.fixture(scope="module")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, but on disk: nothing here needs them to be good."""
    return write_backbone(tmp_path_factory.mktemp("weights") / "base.pth")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for each pass over a pack."""
    made: list[int] = []
    compute = FrozenBase._compute

    def counted(*args: Any) -> None:
        made.append(1)
        compute(*args)

    monkeypatch.setattr(FrozenBase, "_compute", counted)
    return made


def test_features_equal_the_direct_way_and_are_computed_once(base_file: str, tmp_path: Path, passes: list[int]) -> None:
    config, data = ModelConfig("mobilenet_v2", weights=base_file), toy_data("mobilenet_v2")
    kept = FrozenBase(config, data.images, data.preprocess, cache_dir=str(tmp_path)).features()
    assert kept.shape == (96, 1280)
    assert kept.dtype == np.float32
    assert isinstance(kept, np.memmap)
    assert not kept.flags.writeable
    for units in (8, 16):  # two trials
        run = TrainingRun(replace(config, dense_units=units), TrainConfig(epochs=1), data, cache_dir=str(tmp_path))
        scores = run.run_epoch()
        model = run.best_model()
        images, truth = data.preprocess.to_batch(data.images[data.validation.rows]), data.validation.labels
        with torch.inference_mode():
            direct = model.base(images).numpy()
            loss = torch.nn.functional.cross_entropy(model(images), torch.from_numpy(truth))
        np.testing.assert_allclose(kept[data.validation.rows], direct, rtol=0, atol=1e-4 * np.abs(direct).max())
        # Random weights blow a rounding difference up a thousandfold, and the head standardises what is left.
        assert scores.validation_loss == pytest.approx(float(loss), abs=1e-3)
    assert len(passes) == 1


def test_the_key_follows_weights_preprocessing_and_content(base_file: str, tmp_path: Path, passes: list[int]) -> None:
    config, (images, _) = ModelConfig("mobilenet_v2", weights=base_file), toy_images(4)
    other = tmp_path / "other.pth"
    write_backbone(other, seed=1)
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    for what, pack, how in (
        (config, images, WHAT),
        (replace(config, weights=str(other)), images, WHAT),
        (config, changed, WHAT),
        (config, images, replace(WHAT, mean=(0.0, 0.0, 0.0))),
    ):
        for _ in range(2):
            FrozenBase(what, pack, how, cache_dir=str(tmp_path)).features()
    assert len(passes) == 4


def test_engines_keep_apart_what_they_computed(
    base_file: str, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, (images, _) = ModelConfig("mobilenet_v2", weights=base_file), toy_images(4)
    ours = FrozenBase(config, images, WHAT, cache_dir=str(tmp_path)).features()
    monkeypatch.setattr(engine, "fastest", lambda device: "torch")
    theirs = FrozenBase(config, images, WHAT, cache_dir=str(tmp_path)).features()
    assert len(passes) == 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_a_memory_map_is_known_by_its_file(tmp_path: Path) -> None:
    for name, value in (("one", 0), ("two", 0)):
        (tmp_path / name).mkdir()
        np.full((2, 8, 8, 3), value, np.uint8).tofile(tmp_path / name / "pixels.u8")

    def key(name: str) -> str:
        return content_key(np.memmap(tmp_path / name / "pixels.u8", np.uint8, "r", shape=(2, 8, 8, 3)))

    assert key("one") == key("one") != key("two")


def test_a_broken_file_is_computed_again(base_file: str, tmp_path: Path, passes: list[int]) -> None:
    config, (images, _) = ModelConfig("mobilenet_v2", weights=base_file), toy_images(4)
    kept = np.array(FrozenBase(config, images, WHAT, cache_dir=str(tmp_path)).features())
    (file,) = (tmp_path / "features").glob("*.npy")
    for content in (file.read_bytes()[:-100], b"nothing"):
        file.write_bytes(content)
        assert np.array_equal(FrozenBase(config, images, WHAT, cache_dir=str(tmp_path)).features(), kept)
    assert len(passes) == 3


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, UserError), (errno.EIO, OSError)])
def test_a_full_disk_leaves_no_half_file(
    code: int, kind: type[Exception], base_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(code, "disk")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(kind, match=r"no room for the features|disk"):
        FrozenBase(
            ModelConfig("mobilenet_v2", weights=base_file), toy_images(4)[0], WHAT, cache_dir=str(tmp_path)
        ).features()
    assert [path.suffix for path in (tmp_path / "features").iterdir()] == [".lock"]


def test_a_frozen_base_is_not_in_the_checkpoint(base_file: str, tmp_path: Path) -> None:
    config = ModelConfig("mobilenet_v2", weights=base_file, dense_units=32)
    data = toy_data("mobilenet_v2", train=16, validation=8)
    for strength in ("off", "light"):
        folder = tmp_path / strength
        run = TrainingRun(config, TrainConfig(epochs=1, augment=strength), data, cache_dir=str(tmp_path))
        run.run_epoch()
        run.save(str(folder))
        assert (folder / "checkpoint.pt").stat().st_size < 1_500_000  # the base alone has 9 MB
        again = load_best(str(folder), config, cache_dir=str(tmp_path))
        mine = run.best_model().state_dict()
        assert all(torch.equal(value, mine[name]) for name, value in again.state_dict().items())


def test_a_checkpoint_over_another_base_is_refused(base_file: str, tmp_path: Path) -> None:
    config, data = ModelConfig("mobilenet_v2", weights=base_file), toy_data("mobilenet_v2", train=16, validation=8)
    run = TrainingRun(config, TrainConfig(epochs=1), data, cache_dir=str(tmp_path))
    run.run_epoch()
    run.save(str(tmp_path / "run"))
    write_backbone(tmp_path / "other.pth", seed=1)
    other = replace(config, weights=str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match="trained over another base"):
        load_best(str(tmp_path / "run"), other, cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="the checkpoint's base is"):
        TrainingRun(other, TrainConfig(epochs=1), data, cache_dir=str(tmp_path)).load(str(tmp_path / "run"))


def test_a_frozen_run_with_augmentation_resumes_exactly(base_file: str, tmp_path: Path) -> None:
    config, data = ModelConfig("mobilenet_v2", weights=base_file), toy_data("mobilenet_v2", train=16, validation=8)
    train = TrainConfig(epochs=3, augment="strong", batch_size=8, patience=0)
    unbroken, killed, resumed = (TrainingRun(config, train, data, cache_dir=str(tmp_path)) for _ in range(3))
    for _ in range(3):
        unbroken.run_epoch()
    killed.run_epoch()
    killed.save(str(tmp_path / "run"))
    resumed.load(str(tmp_path / "run"))
    while not resumed.finished:
        resumed.run_epoch()
    assert resumed.scores[-1].training_loss == unbroken.scores[-1].training_loss
    assert resumed.scores[-1].validation_loss == unbroken.scores[-1].validation_loss
