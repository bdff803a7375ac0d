"""Successive halving over epochs: what it stops, what it never stops, and that a kill changes no decision."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from models.training import TrainConfig
from tune import runs
from tune.optunasearch import KillProofSearch, StatelessTPE
from tune.plan import plan_of
from tune.pruning import Halving, PruneByStudy
from tune.settings import SearchConfig
from tune.space import make_space

SPACE = make_space("default", {"learning_rate": 0.001, "epochs": 12, "dense_units": 32}, backbone=False)


def study_of(*curves: Sequence[float]) -> optuna.Study:
    """A study whose trials reported these values at epochs 1, 2, ..."""
    study = optuna.create_study(direction="maximize")
    for curve in curves:
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
    return study


def pruned(study: optuna.Study, number: int, halving: Halving) -> bool:
    return halving.prune(study, study.trials[number])


def test_the_best_third_at_a_rung_goes_on() -> None:
    halving = Halving(2, reduction=3)
    study = study_of([0.5, 0.6], [0.5, 0.5], [0.5, 0.4], [0.5, 0.7], [0.9, 0.55], [0.1, 0.65])
    # Trials 0-2: the third is the first that is judged, against 0.6 and 0.5. 4 and 5: two of five or six go on.
    assert [pruned(study, n, halving) for n in range(6)] == [False, False, True, False, True, False]


def test_nothing_is_judged_between_rungs_or_before_the_first() -> None:
    halving = Halving(2, reduction=3)
    assert not pruned(study_of([0.9], [0.8], [0.1]), 2, halving)
    assert not pruned(study_of([0.9, 0.3, 0.9], [0.9, 0.3, 0.9], [0.1, 0.2, 0.1]), 2, halving)
    assert pruned(study_of([0.9, 0.3, 0.1], [0.9, 0.3, 0.1], [0.1, 0.2]), 2, halving)
    assert not pruned(study_of([], [], []), 2, halving)
    assert pruned(study_of([0, 1, 0, 0, 0, 0.9], [0, 1, 0, 0, 0, 0.8], [0, 1, 0, 0, 0, 0.7]), 2, halving)  # second rung


def test_the_defaults_and_ties_are_spared() -> None:
    halving = Halving(1, reduction=3)
    study = study_of([0.1], [0.9], [0.9], [0.9])
    assert not pruned(study, 0, halving)
    assert not pruned(study, 3, halving)


def test_a_trial_is_judged_by_those_before_it_only() -> None:
    """So a decision does not change when trials that started later come past it, nor after a resume."""
    halving = Halving(1, reduction=3)
    study = study_of([0.5], [0.5], [0.6], *[[0.9]] * 10)
    assert not pruned(study, 2, halving)


def open_search(path: Path) -> KillProofSearch:
    return KillProofSearch(
        space=SPACE,
        metric="m",
        mode="max",
        sampler=StatelessTPE(0),
        pruner=Halving(2),
        study_name="s",
        storage=optuna.storages.RDBStorage(f"sqlite:///{path}"),
    )


class Controller:
    """What the scheduler asks of Tune's controller."""

    def __init__(self, search: KillProofSearch, *trials: "Waiting") -> None:
        self.search, self.trials, self.saved = search, trials, 0
        self._tune_controller = self
        self._live_trials: set[Waiting] = set()

    def _set_trial_status(self, trial: "Waiting", status: str) -> None:
        trial.status = status

    def checkpoint(self, *, force: bool) -> None:
        assert force
        self.saved += 1

    def get_trials(self) -> list["Waiting"]:
        return list(self.trials)

    def stop_trial(self, trial: "Waiting") -> None:
        trial.status = "TERMINATED"
        self.search.on_trial_complete(trial.trial_id)


class Waiting:
    def __init__(self, trial_id: str) -> None:
        self.trial_id, self.status = trial_id, "PENDING"
        self.last_result = {"epoch": 1}
        self.failures = 0
        self.run_metadata = SimpleNamespace(error_filename="error.txt", pickled_error_filename="error.pkl")

    def should_recover(self) -> bool:
        return self.failures < 2

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_decision_that_a_kill_kept_from_being_carried_out_is_made_again(tmp_path: Path) -> None:
    search = open_search(tmp_path / "study.db")
    scheduler = PruneByStudy(search)
    trials = [Waiting(f"t{number}") for number in range(3)]
    controller = Controller(search, *trials)
    decisions = []
    for trial, value in zip(trials, (0.9, 0.8, 0.1), strict=True):
        assert search.suggest(trial.trial_id) is not None
        for epoch in (1, 2):
            report = {"m": value, "training_iteration": epoch}
            decisions.append(scheduler.on_trial_result(controller, trial, report))  # type: ignore[arg-type]
        if value > 0.5:
            search.on_trial_complete(trial.trial_id, {**report, "finished": True})
            trial.status = "TERMINATED"
    assert decisions == ["CONTINUE"] * 5 + ["STOP"]

    # Killed before Tune had obeyed: the trial comes back waiting, at an epoch after which it would train on.
    assert scheduler.choose_trial_to_run(controller) is None
    assert scheduler.choose_trial_to_run(controller) is None
    assert controller.saved == 1  # the ends are written down at once, and once
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    assert study.trials[2].intermediate_values == {1: 0.1, 2: 0.1}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_whose_process_died_before_its_first_step_is_tried_again_before_any_other(tmp_path: Path) -> None:
    search = open_search(tmp_path / "study.db")
    scheduler = PruneByStudy(search)
    trial = Waiting("t0")
    controller = Controller(search, trial)
    assert search.suggest("t0") is not None
    for died in (1, 2):
        trial.failures = died
        scheduler.on_trial_error(controller, trial)  # type: ignore[arg-type]
        search.on_trial_complete("t0", error=True)
        trial.status = "ERROR"
        assert (search.suggest("t1") is None) == (died == 1)
        chosen = scheduler.choose_trial_to_run(controller)
        assert chosen is (trial if died == 1 else None)
    assert trial in controller._live_trials
    assert trial.run_metadata.error_filename is None
    # It ran after all: its end reaches the study though Tune's limiter no longer passes it on.
    scheduler.on_trial_complete(controller, trial, {"m": 0.5, "training_iteration": 1, "finished": True})  # type: ignore[arg-type]
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.trials[0].state == TrialState.COMPLETE


@pytest.mark.ray
def test_a_pruned_trial_is_pruned_in_table_and_study(
    ray_cluster: None, config: SearchConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(
        config,
        train=TrainConfig(epochs=12, batch_size=16, learning_rate=0.003, patience=0),
        trials=6,
    )
    assert runs.search(config) == 0
    table = pd.read_csv(tmp_path / "run" / "trials.csv").set_index("trial")
    study = optuna.load_study(study_name="eagleray", storage=f"sqlite:///{tmp_path / 'run' / 'study.db'}")
    states = {t.number: t.state for t in study.trials}
    ended = table.index[table["status"] == "pruned"]
    assert len(ended) > 0
    assert 0 not in ended
    for number, row in table.iterrows():
        finished = row["status"] == "finished"
        assert states[int(str(number))] == (TrialState.COMPLETE if finished else TrialState.PRUNED)
        assert finished or row["epochs_run"] < row["epochs"]
        # The sampler is shown how far it came, not a value as if it were final.
        assert max(study.trials[int(str(number))].intermediate_values) == row["epochs_run"]
    assert f"{len(ended)} pruned" in capsys.readouterr().out


def test_what_cannot_be_judged_on_the_way_is_not_pruned() -> None:
    assert plan_of(SearchConfig()).pruner is not None
    assert plan_of(SearchConfig(prune="off")).pruner is None
    assert plan_of(SearchConfig(objective="accuracy,size")).pruner is None
    short = SearchConfig(train=replace(TrainConfig(), epochs=3))
    assert plan_of(short).pruner is None
