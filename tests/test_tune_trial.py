"""One trial by itself, and how many of them run at once."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data.collection import load_collection
from data.errors import UserError
from models.catalog import ModelConfig
from models.training import TrainConfig
from tune.objectives import ACCURACY
from tune.searching import concurrent_trials
from tune.session import Session
from tune.settings import SearchConfig
from tune.trial import Job, Trial

pytestmark = pytest.mark.ray


def test_a_trial_of_tune_reports_the_objective_and_its_end(config: SearchConfig, tmp_path: Path) -> None:
    job = Job(config.model, config.train, load_collection(config.data))
    trial = Trial.__new__(Trial)
    trial.setup({"epochs": 2, "dense_units": 8}, job)
    reports = [trial.step(), trial.step()]
    assert [r["done"] for r in reports] == [False, True]
    assert reports[1][ACCURACY.metric] == reports[1]["best_validation_accuracy"]
    trial.save_checkpoint(str(tmp_path / "saved"))
    again = Trial.__new__(Trial)
    again.setup({"epochs": 2, "dense_units": 8}, job)
    again.load_checkpoint(str(tmp_path / "saved"))
    assert again.reset_config({"epochs": 3, "dense_units": 8})
    assert again.step()["epoch"] == 1


def test_a_job_takes_hyperparameters_to_where_they_belong() -> None:
    job = Job(ModelConfig(), TrainConfig(), collection=None)  # type: ignore[arg-type]
    drawn = {"trial": 3, "learning_rate_reverse_log": 0.01, "learning_rate": 0.02, "dense_units": 9, "dropout": 0.4}
    changed = job.with_values(drawn)
    assert changed.train.learning_rate == 0.02
    assert (changed.model.dense_units, changed.model.dropout) == (9, 0.4)
    assert changed.hyperparameters()["epochs"] == 10  # filled in


@pytest.mark.parametrize(
    ("settings", "session", "expected"),
    [
        (SearchConfig(), Session("", 4, 0), 4),
        (SearchConfig(threads=2), Session("", 4, 0), 2),
        (SearchConfig(max_concurrent=1), Session("", 4, 0), 1),
        (SearchConfig(max_concurrent=9, workers_per_trial=2), Session("", 4, 0), 2),
        (SearchConfig(workers_per_trial=2), Session("", 16, 3), 1),
    ],
)
def test_as_many_trials_run_as_fit(settings: SearchConfig, session: Session, expected: int) -> None:
    assert concurrent_trials(settings, session) == expected


def test_a_trial_that_never_fits_is_refused_instead_of_waiting() -> None:
    with pytest.raises(UserError, match=r"4 worker\(s\) need 4 CPUs together and Ray has 2"):
        concurrent_trials(SearchConfig(workers_per_trial=4), Session("", 2, 0))


def test_a_job_starts_on_a_node_that_has_no_pack_yet(config: SearchConfig, tmp_path: Path) -> None:
    collection = load_collection(replace(config.data, cache_dir=str(tmp_path / "cache")))
    shutil.rmtree(tmp_path / "cache")
    run = Job(config.model, config.train, collection).start()
    run.run_epoch()
    assert run.scores[0].images == len(collection.subset("train").rows)
