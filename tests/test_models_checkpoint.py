"""Checkpoints: the best network out of them, going on from them, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from models.catalog import ModelConfig
from models.training import TrainConfig, TrainingRun, load_best
from tests.models_toys import finish, toy_data

CNN = ModelConfig(dropout=0.3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TrainingRun]:
    folder = tmp_path_factory.mktemp("saved")
    run = TrainingRun(CNN, TrainConfig(epochs=2), toy_data(train=16, validation=8))
    run.run_epoch()
    run.save(str(folder))
    return str(folder), run


def test_the_best_network_comes_out_of_a_checkpoint(saved: tuple[str, TrainingRun]) -> None:
    folder, run = saved
    mine, theirs = run.best_model().state_dict(), load_best(folder, CNN).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        (replace(CNN, dense_units=7), TrainConfig(epochs=2), "the checkpoint's model is"),
        (CNN, TrainConfig(epochs=2, learning_rate=0.5), "the checkpoint's train is .*go on with the same settings"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    saved: tuple[str, TrainingRun], model: ModelConfig, train: TrainConfig, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TrainingRun(model, train, toy_data(train=16, validation=8)).load(saved[0])


def test_a_checkpoint_of_other_images_is_refused(saved: tuple[str, TrainingRun]) -> None:
    run = TrainingRun(CNN, TrainConfig(epochs=2), toy_data(train=16, validation=8, size=40))
    with pytest.raises(UserError, match="the checkpoint's preprocess is"):
        run.load(saved[0])


def test_a_run_may_be_made_longer(saved: tuple[str, TrainingRun]) -> None:
    run = TrainingRun(CNN, TrainConfig(epochs=4, patience=0), toy_data(train=16, validation=8))
    run.load(saved[0])
    assert len(finish(run).scores) == 4


def test_what_is_no_checkpoint_says_so(tmp_path: Path, saved: tuple[str, TrainingRun]) -> None:
    with pytest.raises(UserError, match=r"no checkpoint there \(checkpoint.pt is missing\)"):
        load_best(str(tmp_path), CNN)
    (tmp_path / "checkpoint.pt").write_bytes(Path(saved[0], "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match="broken checkpoint"):
        load_best(str(tmp_path), CNN)
    for version in (1, 99):
        torch.save({"format_version": version}, tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match=f"checkpoint format {version}, .*; use the one it is from"):
            load_best(str(tmp_path), CNN)
    with pytest.raises(UserError, match="give the same model settings"):
        load_best(saved[0], replace(CNN, dropout=0))


def test_a_network_before_its_first_epoch_is_none(tmp_path: Path) -> None:
    TrainingRun(CNN, TrainConfig(), toy_data()).save(str(tmp_path))
    with pytest.raises(UserError, match="saved before its first epoch ended"):
        load_best(str(tmp_path), CNN)
