"""The study in memory and its file hold the same at any moment, and a process that opens the file finds it all."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tune.studyfile import StudyFile


def content(storage: optuna.storages.BaseStorage) -> list[object]:
    """All that a study holds, without ids and without times, which each storage takes by itself."""
    study = optuna.load_study(study_name="s", storage=storage)
    names = (
        "number",
        "state",
        "values",
        "params",
        "distributions",
        "user_attrs",
        "system_attrs",
        "intermediate_values",
    )
    trials = [{name: getattr(trial, name) for name in names} for trial in study.get_trials()]
    return [study.directions, study.user_attrs, trials]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_memory_and_file_hold_the_same_after_every_step(url: str) -> None:
    storage, plain = StudyFile(url), optuna.storages.RDBStorage(url)
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    study.enqueue_trial({"rate": 0.5, "kind": "b"})
    study.set_user_attr("widened", {"rate": [0.1, 2.0]})
    assert content(storage) == content(plain)
    for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)):
        trial = study.ask()
        assert content(storage) == content(plain)
        trial.suggest_float("rate", 0.1, 1.0, log=True)
        trial.suggest_categorical("kind", ["a", "b"])
        trial.suggest_int("units", 8, 128, log=True)
        assert content(storage) == content(plain)
        trial.report(0.25, 1)
        trial.report(0.5, 2)
        trial.set_user_attr("note", "mine")
        if state != TrialState.RUNNING:
            study.tell(number, 0.75 if state == TrialState.COMPLETE else None, state=state)
        assert content(storage) == content(plain)
    assert study.trials[0].params["rate"] == 0.5
    assert content(StudyFile(url)) == content(plain)


def test_a_study_that_is_opened_again_goes_on(url: str) -> None:
    study = optuna.create_study(study_name="s", storage=StudyFile(url), directions=["maximize", "minimize"])
    study.tell(study.ask(), [0.5, 1.0])
    running = study.ask()
    running.suggest_float("rate", 0.1, 1.0)
    again = optuna.load_study(study_name="s", storage=StudyFile(url))
    assert [trial.state for trial in again.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    again.tell(1, [0.75, 2.0])
    assert again.ask().number == 2
    assert content(StudyFile(url)) == content(optuna.storages.RDBStorage(url))
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(study_name="s", storage=StudyFile(url))
