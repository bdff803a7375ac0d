"""Several workers a model, under Ray Train: the same losses as one worker, and a worker's death survived."""

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray.train

from data import store
from data.collection import DataConfig, load_collection
from data.errors import UserError
from models import checkpoint
from models.predictor import Predictor
from models.training import EpochScores, TrainConfig, TrainingRun
from tests.commands import Command, run
from tune import distributed, runs
from tune.settings import SearchConfig, TrainJobConfig
from tune.trial import Job

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def job(photos: Path, cache_dir: str) -> Job:
    """64 training images, so that a global batch of 16 divides them; nothing random but the first weights."""
    data = DataConfig(data=str(photos / "labels.csv"), image_size=16, cache_dir=cache_dir)
    config = TrainConfig(epochs=3, batch_size=16, patience=0, augment="off")
    collection = load_collection(data)
    assert len(collection.subset("train").rows) % 16 == 0
    return replace(Job(SearchConfig().model, config, collection), model=replace(SearchConfig().model, dropout=0.0))


class Telling(ray.train.UserCallback):
    """Writes down what is reported: epoch, step, whether it was the last one; and how often the controller looks."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        seen = [metrics[0][name] for name in ("epoch", "training_iteration", "finished")]
        with self._file.open("a") as file:
            file.write(json.dumps([*seen, os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]]) + "\n")


def curve(job: Job, workers: int, folder: Path) -> list[dict[str, Any]]:
    """The scores of each epoch; what was reported of them is left in `folder`/told."""
    callbacks: list[Any] = [Telling(folder / "told")]
    name = f"of-{workers}"
    result = distributed.fit(job, workers=workers, name=name, storage=str(folder), callbacks=callbacks)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as saved:
        return list(checkpoint.read(saved)["scores"])


@pytest.fixture(scope="module")
def of_two(ray_cluster: None, job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Where two workers have trained it, and their scores."""
    folder = tmp_path_factory.mktemp("two")
    return folder, curve(job, 2, folder)


def test_two_workers_learn_as_one(job: Job, of_two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    one, (_, two) = curve(job, 1, tmp_path), of_two
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["training_loss"] == pytest.approx(b["training_loss"], abs=1e-5)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-5)
        assert a["images"] == b["images"] == 64


@dataclass(frozen=True)
class Dying(Job):
    """A job of which rank 1 dies once, after the second epoch."""

    mark: str = ""

    def start(self, *args: Any, **kwargs: Any) -> TrainingRun:
        run = super().start(*args, **kwargs)
        train_an_epoch = run.run_epoch

        def die_once() -> EpochScores:
            if run.world.rank == 1 and len(run.scores) == 2 and not Path(self.mark).exists():
                Path(self.mark).touch()
                os._exit(1)
            return train_an_epoch()

        run.run_epoch = die_once  # type: ignore[method-assign]
        return run


def test_a_workers_death_costs_no_more_than_its_epoch(ray_cluster: None, job: Job, tmp_path: Path) -> None:
    """With dropout and augmentation on, the run that lost a worker has the very losses of the unbroken one."""
    job = replace(job, train=replace(job.train, augment="light", epochs=4), model=replace(job.model, dropout=0.3))
    unbroken = curve(job, 2, tmp_path / "unbroken")
    mark = tmp_path / "died"
    dying = Dying(job.model, job.train, job.collection, mark=str(mark))
    broken = curve(dying, 2, tmp_path / "broken")
    assert mark.exists()
    times = ("seconds", "cpu_seconds")
    without_times = [{k: v for k, v in scores.items() if k not in times} for scores in unbroken]
    assert [{k: v for k, v in scores.items() if k not in times} for scores in broken] == without_times


def test_who_comes_after_the_last_epoch_is_told_of_it(job: Job, of_two: tuple[Path, list[dict[str, Any]]]) -> None:
    """A head that is lost once the workers are through would otherwise leave a trial that never ended."""
    folder, scores = of_two
    assert curve(job, 2, folder) == scores
    told = [json.loads(line) for line in (folder / "told").read_text().splitlines()]
    first, after = [[1, 1, False], [2, 2, False], [3, 3, True]], [[3, 3, True]]
    # Looked at often: otherwise each of these short epochs would take the two seconds between Ray's own looks.
    assert told == [[*report, "0.5"] for report in (*first, *after)]


def test_what_cannot_be_trained_says_so(ray_cluster: None, photos: Path, cache_dir: str, tmp_path: Path) -> None:
    config = TrainJobConfig(
        data=DataConfig(data=str(photos / "labels.csv"), image_size=16, cache_dir=cache_dir),
        train=TrainConfig(epochs=2, learning_rate=1e30, optimizer="sgd"),
        out=str(tmp_path / "run"),
        workers=2,
    )
    with pytest.raises(UserError, match="the loss is no finite number at epoch 1"):
        runs.train(config)


def test_a_search_whose_trials_have_two_workers(
    ray_cluster: None, photos: Path, cache_dir: str, tmp_path: Path
) -> None:
    config = SearchConfig(
        data=DataConfig(data=str(photos / "labels.csv"), image_size=16, cache_dir=cache_dir),
        train=TrainConfig(epochs=2, batch_size=16),
        out=str(tmp_path / "run"),
        trials=2,
        workers_per_trial=2,
        max_concurrent=1,
    )
    assert runs.search(config) == 0
    table = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert list(table["status"]) == ["finished", "finished"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    best = table[table["trial"] == report["search"]["best_trial"]].iloc[0]
    assert report["validation"]["accuracy"] == pytest.approx(best["validation_accuracy"])


def test_workers_that_take_every_cpu_run_and_ctrl_c_leaves_a_bundle(
    photos: Path, cache_dir: str, tmp_path: Path
) -> None:
    """The driver of such a trial must not hold any part of a CPU, and what it names must still be there."""
    out = tmp_path / "run"
    arguments = ["--data", str(photos / "labels.csv"), "--cache-dir", cache_dir, "--out", str(out), "--trials", "2"]
    more = ["--image-size", "16", "--epochs", "200", "--patience", "0", "--workers-per-trial", "2", "--cpus", "2"]
    table = out / "trials.csv"
    with Command("tune/search.py", *arguments, *more) as command:
        command.wait_until(lambda: table.exists() and "running" in table.read_text(), "first epoch")
        command.signal(signal.SIGTERM)  # what a scheduler sends; to us it is a Ctrl-C
        assert command.end() == 0
    assert "go on with" in command.text
    assert Predictor.load(str(out / "bundle")).info.classes == ("crab", "sponge")


def test_workers_that_never_fit_are_refused(photos: Path, cache_dir: str, tmp_path: Path) -> None:
    data = ["--data", str(photos / "labels.csv"), "--cache-dir", cache_dir, "--out", str(tmp_path / "run")]
    printed = run("tune/train.py", *data, "--workers", "2", "--cpus", "1", code=2)
    assert "need 2 CPUs together and Ray has 1" in printed
    assert not (tmp_path / "run").exists()


def test_train_command_keeps_checkpoints_in_a_bucket_and_goes_on_from_them(
    photos: Path, cache_dir: str, bucket: str
) -> None:
    out = f"{bucket}/trained"
    data = ["--data", str(photos / "labels.csv"), "--cache-dir", cache_dir, "--out", out]
    printed = run("tune/train.py", *data, "--image-size", "16", "--epochs", "2", "--workers", "2", "--cpus", "2")
    assert f"uv run serve/app.py --bundle {out}/bundle" in printed
    assert any(entry.key.endswith("checkpoint.pt") for entry in store.list_files(f"{out}/ray"))
    first = Predictor.load(f"{out}/bundle").info
    assert len(first.learning_curve) == 2
    again = run("tune/train.py", "--out", out, "--cache-dir", cache_dir, "--resume")
    assert first.id in again  # nothing was left to train: the same model
