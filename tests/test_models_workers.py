"""Several workers train the same network as one does, and end with the same network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torchvision
from torch import multiprocessing

from models import probe
from models.catalog import ModelConfig
from models.features import FrozenBase
from models.training import NonFiniteLoss, TrainConfig, TrainingRun, World
from tests.models_toys import toy_data

Results = list[dict[str, Any]]

PLAIN = TrainConfig(learning_rate=0.001, epochs=3, batch_size=16, patience=0)
CNN = ModelConfig(dropout=0)
FINETUNED = ModelConfig("resnet18", weights="none", base="finetune")


def finish(run: TrainingRun) -> dict[str, Any]:
    while not run.finished:
        run.run_epoch()
    return {"scores": [scores.as_dict() for scores in run.scores], "state": run.best_model().state_dict()}


def batchings(world: World, folder: Path) -> Any:
    """Every way of making a batch that must not depend on the number of workers."""
    even, odd = toy_data(), toy_data(train=65 + 16)
    return {
        "adam": finish(TrainingRun(CNN, PLAIN, even, world=world)),
        "sgd": finish(TrainingRun(CNN, replace(PLAIN, optimizer="sgd", learning_rate=0.01), even, world=world)),
        # 81 = 4 * 16 + 17: a last batch of one joins the one before, and its parts are 9 and 8 images
        "odd": finish(TrainingRun(CNN, replace(PLAIN, balance="weights"), odd, world=world)),
        "augmented": finish(TrainingRun(CNN, replace(PLAIN, augment="strong", balance="sampling"), even, world=world)),
    }


def with_buffers(world: World, folder: Path) -> Any:
    """A network with BatchNorm and dropout, whose validation rows cannot be shared out evenly; saved and loaded."""
    data = toy_data("resnet18", train=36, validation=13)
    run = TrainingRun(FINETUNED, TrainConfig(epochs=2, batch_size=16, augment="light"), data, world=world)
    result = finish(run)
    run.save(str(folder / "checkpoint"))  # by rank 0 alone
    torch.distributed.barrier()
    again = TrainingRun(FINETUNED, run.config, data, world=world)
    again.load(str(folder / "checkpoint"))
    return {**result, "again": again.best_model().state_dict()}


def losing(world: World, folder: Path) -> Any:
    """One worker alone meets a loss that is no number: what each of them hears of it."""
    run = TrainingRun(CNN, PLAIN, toy_data(train=16, validation=8), world=world)
    if world.rank == 1:
        with torch.no_grad():
            next(run._learner.trained.parameters()).fill_(float("nan"))
    try:
        run.run_epoch()
    except NonFiniteLoss as error:
        return str(error)
    return ""


def judging(world: World, folder: Path) -> Any:
    """Untrained weights judge images that cannot be shared out evenly; six units never fire, some fire on few."""
    run = TrainingRun(CNN, PLAIN, toy_data(train=16, validation=13), world=world)
    with torch.no_grad():
        run._learner.trained.state_dict()["head.0.bias"][:6] = -1e6
    return run._learner.validate(run.data.validation, epoch=1)._asdict()


def laid_out(world: World, folder: Path) -> Any:
    """Each worker would choose another layout; what it trains in, and whether it measured at all."""
    asked: list[int] = []

    def measure(*_: Any) -> dict[str, float]:
        asked.append(world.rank)
        return {"channels_last": 1.0, "contiguous": 0.5 + world.rank}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "_measure", measure)
        run = TrainingRun(CNN, PLAIN, toy_data(train=16, validation=8), world=world, cache_dir=str(folder / "layouts"))
    return {"contiguous": next(run._learner.trained.parameters()).is_contiguous(), "asked": asked}


def over_features(world: World, folder: Path) -> Any:
    """A frozen base: how often this worker ran it, and what came of it."""
    made: list[int] = []
    compute = FrozenBase._compute

    def counted(*args: Any) -> None:
        made.append(1)
        compute(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenBase, "_compute", counted)
        config = ModelConfig("mobilenet_v2", weights=str(folder / "base.pth"))
        data = toy_data("mobilenet_v2", train=32, validation=8)
        run = TrainingRun(config, PLAIN, data, world=world, cache_dir=str(folder / "cache"))
    return {**finish(run), "passes": len(made)}


WORK: tuple[Callable[[World, Path], Any], ...] = (batchings, with_buffers, losing, judging, laid_out, over_features)


def worker(rank: int, size: int, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    torch.save({work.__name__: work(World(rank, size), folder) for work in WORK}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What all the work gave on each of two workers. Started once: most of the time is importing torch."""
    folder = tmp_path_factory.mktemp("workers")
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), folder / "base.pth")
    multiprocessing.spawn(worker, (2, folder), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_workers_train_as_one(two: Results, tmp_path: Path) -> None:
    for name, alone in batchings(World(), tmp_path).items():
        for rank in two:
            for ours, theirs in zip(alone["scores"], rank["batchings"][name]["scores"], strict=True):
                for number in ("training_loss", "validation_loss"):
                    assert theirs[number] == pytest.approx(ours[number], abs=1e-5), name
                for number in ("training_accuracy", "validation_accuracy", "images", "best_epoch"):
                    assert theirs[number] == pytest.approx(ours[number]), name


def test_all_workers_end_with_the_same_parameters_and_buffers(two: Results) -> None:
    first, second = (rank["with_buffers"] for rank in two)
    assert any("running_var" in name for name in first["state"])
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        assert torch.equal(value, first["again"][name]), name
        assert torch.equal(value, second["again"][name]), name
    timeless = {"seconds": 0, "cpu_seconds": 0}
    for ours, theirs in zip(first["scores"], second["scores"], strict=True):
        assert {**ours, **timeless} == {**theirs, **timeless}


def test_every_worker_hears_of_a_lost_loss(two: Results) -> None:
    first, second = (rank["losing"] for rank in two)
    assert first == second
    assert "epoch 1, batch 1, learning rate 0.001" in first


def test_two_workers_judge_as_one(two: Results, tmp_path: Path) -> None:
    alone = judging(World(), tmp_path)
    assert 6 / 32 <= alone["dead_units"] < 1
    for rank in two:
        theirs = rank["judging"]
        assert theirs == {**alone, "loss": theirs["loss"]}
        assert theirs["loss"] == pytest.approx(alone["loss"], abs=1e-9)


def test_all_workers_take_the_layout_of_the_first(two: Results) -> None:
    assert [rank["laid_out"] for rank in two] == [{"contiguous": True, "asked": [0]}, {"contiguous": True, "asked": []}]


def test_two_workers_compute_features_once(two: Results) -> None:
    first, second = (rank["over_features"] for rank in two)
    assert first["passes"] + second["passes"] == 1
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
