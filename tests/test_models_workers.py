"""Several workers train the same network as one does, and end with the same network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from models.catalog import ModelConfig
from models.training import NonFiniteLoss, TrainConfig, TrainingRun, World
from tests.models_toys import toy_data

Work = Callable[[World, Path], Any]

PLAIN = TrainConfig(learning_rate=0.001, epochs=3, batch_size=16, patience=0)
CNN = ModelConfig(dropout=0)
FINETUNED = ModelConfig("resnet18", weights="none", base="finetune")


def _worker(rank: int, size: int, folder: Path, work: Work) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    torch.save(work(World(rank, size), folder), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def together(work: Work, folder: Path, size: int = 2) -> list[Any]:
    """What `work` returns on each of `size` workers."""
    torch.multiprocessing.spawn(_worker, (size, folder, work), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _finish(run: TrainingRun) -> dict[str, Any]:
    while not run.finished:
        run.run_epoch()
    return {"scores": [scores.as_dict() for scores in run.scores], "state": run.best_model().state_dict()}


def train_plain(world: World, folder: Path) -> Any:
    """Every way of making a batch that must not depend on the number of workers, one after the other."""
    even, odd = toy_data(), toy_data(train=65 + 16)
    return {
        "adam": _finish(TrainingRun(CNN, PLAIN, even, world=world)),
        "sgd": _finish(TrainingRun(CNN, replace(PLAIN, optimizer="sgd", learning_rate=0.01), even, world=world)),
        # 81 = 4 * 16 + 17: a last batch of one joins the one before, and its parts are 9 and 8 images
        "odd": _finish(TrainingRun(CNN, replace(PLAIN, balance="weights"), odd, world=world)),
        "augmented": _finish(TrainingRun(CNN, replace(PLAIN, augment="strong", balance="sampling"), even, world=world)),
    }


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    alone = train_plain(World(), tmp_path)
    for rank in together(train_plain, tmp_path):
        for name, mine in alone.items():
            for ours, theirs in zip(mine["scores"], rank[name]["scores"], strict=True):
                for number in ("training_loss", "validation_loss"):
                    assert theirs[number] == pytest.approx(ours[number], abs=1e-5), name
                for number in ("training_accuracy", "validation_accuracy", "images", "best_epoch"):
                    assert theirs[number] == pytest.approx(ours[number]), name


def train_with_buffers(world: World, folder: Path) -> Any:
    """A network with BatchNorm and dropout, whose validation rows cannot be shared out evenly."""
    data = toy_data("resnet18", train=36, validation=13)
    run = TrainingRun(FINETUNED, TrainConfig(epochs=2, batch_size=16, augment="light"), data, world=world)
    result = _finish(run)
    run.save(str(folder / "checkpoint"))  # by rank 0 alone
    torch.distributed.barrier()
    again = TrainingRun(FINETUNED, run.config, data, world=world)
    again.load(str(folder / "checkpoint"))
    return {**result, "again": again.best_model().state_dict()}


def test_all_workers_end_with_the_same_parameters_and_buffers(tmp_path: Path) -> None:
    first, second = together(train_with_buffers, tmp_path)
    assert any("running_var" in name for name in first["state"])
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        assert torch.equal(value, first["again"][name]), name
        assert torch.equal(value, second["again"][name]), name
    for ours, theirs in zip(first["scores"], second["scores"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def diverge(world: World, folder: Path) -> Any:
    """One worker alone meets the number that is none: what each of them hears of it."""
    data = toy_data(train=16, validation=8)
    run = TrainingRun(CNN, PLAIN, data, world=world)
    if world.rank == 1:
        with torch.no_grad():
            next(run._learner.trained.parameters()).fill_(float("nan"))
    try:
        run.run_epoch()
    except NonFiniteLoss as error:
        return str(error)
    return ""


def test_every_worker_hears_of_a_lost_loss(tmp_path: Path) -> None:
    first, second = together(diverge, tmp_path)
    assert first == second
    assert "epoch 1, batch 1, learning rate 0.001" in first


def share_features(world: World, folder: Path) -> Any:
    """Two workers over one frozen base: who of them ran it."""
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return features_compute(*args, **kwargs)

    from models import features

    features_compute = features._compute
    features._compute = counted  # type: ignore[assignment]
    torch.manual_seed(1)
    weights = folder / "base.pt"
    config = ModelConfig("mobilenet_v2", weights=str(weights))
    data = toy_data("mobilenet_v2", train=32, validation=8)
    run = TrainingRun(config, PLAIN, data, world=world, cache_dir=str(folder / "cache"))
    return {**_finish(run), "calls": len(calls)}


def test_two_workers_compute_features_once(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), tmp_path / "base.pt")
    first, second = together(share_features, tmp_path)
    assert first["calls"] + second["calls"] == 1
    assert first["scores"][-1]["training_loss"] == second["scores"][-1]["training_loss"]


def test_shares_of_the_work_cover_it_once() -> None:
    for count in range(12):
        for size in (1, 2, 3, 5):
            parts = [np.arange(count)[World(rank, size).part(count)] for rank in range(size)]
            assert np.concatenate(parts).tolist() == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_rank_lies_within_its_world() -> None:
    with pytest.raises(ValueError, match="rank must be >= 0 and < size, got rank 2 of 2"):
        World(2, 2)
