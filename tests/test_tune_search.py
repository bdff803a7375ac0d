"""The search on Ray, in this process: what it leaves behind, and what it does when trials fail."""

import json
import os
import sqlite3
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from data.collection import Collection, load_collection
from data.errors import UserError
from models.predictor import Prediction, Predictor
from models.training import EpochScores, TrainingRun
from tune import beginning, runs
from tune.budget import Budget
from tune.outputs import RunFolder
from tune.plan import plan_of
from tune.searching import run_search
from tune.session import Session, start_ray
from tune.settings import SearchConfig
from tune.spending import Spending
from tune.trial import Job

pytestmark = pytest.mark.ray


def test_a_search_leaves_a_bundle_and_says_how_good_it_is(
    ray_cluster: None, config: SearchConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.search(config) == 0
    out = Path(config.out)
    table = pd.read_csv(out / "trials.csv")
    report = json.loads((out / "report.json").read_text())

    # The first trial has the default hyperparameters; every trial ran to its own end.
    assert list(table["trial"]) == [0, 1, 2]
    first = table.iloc[0]
    assert (first["learning_rate"], first["epochs"], first["dense_units"]) == (0.003, 4, 32)
    assert set(table["status"]) == {"finished"}
    assert (table["epochs_run"] <= table["epochs"]).all()

    # The study tells the same story, and opens with Optuna's own tools.
    study = optuna.load_study(study_name="eagleray", storage=f"sqlite:///{out / 'study.db'}")
    assert [t.value for t in study.trials] == pytest.approx(list(table["validation_accuracy"]))
    assert {t.state for t in study.trials} == {optuna.trial.TrialState.COMPLETE}

    # The best trial is the one in the bundle, chosen by validation.
    best = table.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]
    assert report["search"]["best_trial"] == best["trial"]
    assert report["validation"]["accuracy"] == pytest.approx(best["validation_accuracy"])

    # The test accuracy is the predictor's own over the untouched files.
    collection = load_collection(config.data)
    subset = collection.subset("test")
    answers = Predictor.load(str(out / "bundle")).predict_bytes([Path(p).read_bytes() for p in subset.paths])
    labels = [answer.label for answer in answers if isinstance(answer, Prediction)]
    right = np.mean([label == collection.classes[truth] for label, truth in zip(labels, subset.labels, strict=True)])
    assert report["test"]["accuracy"] == pytest.approx(right)
    assert report["test"]["n"] == len(subset.rows)

    printed = capsys.readouterr().out
    assert f"uv run serve/app.py --bundle {out / 'bundle'}" in printed
    assert "95 % interval" in printed
    assert "always naming" in printed


def test_results_are_never_written_over(ray_cluster: None, config: SearchConfig) -> None:
    Path(config.out).mkdir()
    (Path(config.out) / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files already"):
        runs.search(config)
    assert (Path(config.out) / "notes.txt").read_text() == "mine"


def test_a_refused_start_uses_up_no_name(ray_cluster: None, config: SearchConfig, photos: Path) -> None:
    mistyped = replace(config, data=replace(config.data, data=str(photos / "labls.csv")))
    with pytest.raises(UserError, match=r"labls\.csv"):
        runs.search(mistyped)
    assert not Path(config.out).exists()


def test_a_split_that_is_empty_is_refused_before_a_trial_runs(config: SearchConfig, photos: Path) -> None:
    table = pd.read_csv(photos / "labels.csv")
    table["group"] = table["group"].where(table["group"] < "site-02", "site-00")
    table.to_csv(photos / "two-groups.csv", index=False)
    with pytest.raises(UserError, match="no images in the validation split: too few groups"):
        runs.search(replace(config, data=replace(config.data, data=str(photos / "two-groups.csv"))))
    assert not Path(config.out).exists()


def test_a_search_of_other_settings_cannot_be_resumed_by_mistake(
    ray_cluster: None, config: SearchConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no search to resume"):
        runs.search(replace(config, resume=True))


# A trial that fails


@dataclass(frozen=True)
class Faulty(Job):
    """A job whose trials of these numbers lose their numbers: a learning rate of 1e30 makes the loss infinite."""

    bad: tuple[int, ...] = ()

    def with_values(self, values: dict[str, Any]) -> Job:
        good = super().with_values(values)
        if values["trial"] in self.bad:
            return replace(good, train=replace(good.train, learning_rate=1e30, optimizer="sgd"))
        return good


@dataclass(frozen=True)
class Crashing(Job):
    """A job whose process dies once in each trial, in its second epoch."""

    marks: str = ""

    def start(self, *args: Any, **kwargs: Any) -> TrainingRun:
        run = super().start(*args, **kwargs)
        mark, train_an_epoch = Path(self.marks) / f"{self.train.learning_rate}", run.run_epoch

        def die_once() -> EpochScores:
            if run.scores and not mark.exists():
                mark.touch()
                os._exit(1)
            return train_an_epoch()

        run.run_epoch = die_once  # type: ignore[method-assign]
        return run


def prepared(config: SearchConfig) -> tuple[RunFolder, Collection, Session]:
    Path(config.out).mkdir()
    return RunFolder(config.out, config.out), load_collection(config.data), start_ray()


def test_one_failing_trial_does_not_end_the_search(ray_cluster: None, config: SearchConfig) -> None:
    run, collection, session = prepared(config)
    job = Faulty(config.model, config.train, collection, bad=(1,))
    finished = run_search(config, plan_of(config), job, run, session)
    assert list(finished.table["status"]) == ["finished", "failed", "finished"]
    failed = finished.table.iloc[1]
    assert "learning rate 1e+30" in failed["error"]
    assert "epoch 1, batch" in failed["error"]
    assert np.isnan(failed["validation_accuracy"])
    with sqlite3.connect(run.path("study.db")) as study:
        assert {row[0] for row in study.execute("select state from trials")} == {"COMPLETE"}


def test_all_trials_failing_ends_the_search_with_the_reason(
    ray_cluster: None, config: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "Job", partial(Faulty, bad=(0, 1, 2)))
    with pytest.raises(UserError, match=r"no trial has a score; .*loss.*\(3 of 3 trials\)"):
        runs.search(config)
    assert not (Path(config.out) / "bundle").exists()
    assert len(pd.read_csv(Path(config.out) / "trials.csv")) == 3


def test_a_trial_whose_process_dies_is_tried_again(ray_cluster: None, config: SearchConfig, tmp_path: Path) -> None:
    run, collection, session = prepared(config)
    marks = tmp_path / "marks"
    marks.mkdir()
    job = Crashing(config.model, config.train, collection, marks=str(marks))
    two = replace(config, trials=2)
    finished = run_search(two, plan_of(two), job, run, session)
    assert set(finished.table["status"]) == {"finished"}
    assert len(list(marks.iterdir())) == 2


def test_a_trial_that_the_end_of_the_search_stopped_was_not_pruned_and_can_go_on(
    ray_cluster: None, config: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is the last one, so that no other is missing."""
    run, collection, session = prepared(config)
    job, one = Job(config.model, config.train, collection), replace(config, trials=1)
    with monkeypatch.context() as patched:
        patched.setattr(Spending, "refusal", lambda _: "enough")
        stopped = run_search(one, plan_of(one), job, run, session)
    assert (stopped.interrupted, list(stopped.table["status"])) == ("enough", ["stopped"])
    resumed = run_search(replace(one, resume=True), plan_of(one), job, run, session)
    assert (resumed.interrupted, list(resumed.table["status"])) == ("", ["finished"])


def test_the_clock_stops_a_search_with_the_best_so_far(
    ray_cluster: None, config: SearchConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = Budget(budget_minutes=0.12)
    long = replace(config, budget=budget, trials=100, train=replace(config.train, epochs=30, patience=0))
    assert runs.search(long) == 0
    table = pd.read_csv(Path(config.out) / "trials.csv")
    assert 0 < len(table) < 100
    assert (Path(config.out) / "bundle" / "bundle.json").exists()
    printed = capsys.readouterr()
    assert "limit 0.12 minutes of searching" in printed.out
    assert "higher --budget-usd or --budget-minutes" in printed.out
    report = json.loads((Path(config.out) / "report.json").read_text())
    assert report["spending"]["minutes"] == pytest.approx(0.12, rel=0.5)
    assert f"{report['spending']['cpu_seconds']:.0f} CPU-seconds of training" in printed.out
    # A higher limit goes on, and is remembered.
    more = SearchConfig(out=config.out, resume=True, budget=Budget(budget_minutes=0.4))
    assert runs.search(replace(more, data=replace(more.data, cache_dir=config.data.cache_dir))) == 0
    assert len(pd.read_csv(Path(config.out) / "trials.csv")) > len(table)
    assert json.loads((Path(config.out) / "settings.json").read_text())["settings"]["budget"]["budget_minutes"] == 0.4


def test_a_budget_that_does_not_pay_for_the_first_minute_is_refused(ray_cluster: None, config: SearchConfig) -> None:
    poor = replace(config, budget=Budget(budget_usd=0.001, instance_type="g5.xlarge"))
    with pytest.raises(UserError, match="does not pay for the first minute of these machines"):
        runs.search(poor)
