"""Proposals depend on the study alone: what a kill forgets is proposed again, to the digit."""

import pickle
from pathlib import Path

import optuna
import pytest

from tune.optunasearch import KillProofSearch, StatelessTPE
from tune.space import make_space

SPACE = make_space("default", {"learning_rate": 0.001, "epochs": 9, "dense_units": 32}, backbone=False)
Proposal = dict[str, float]


def make(path: Path) -> KillProofSearch:
    return KillProofSearch(
        space=SPACE,
        metric="m",
        mode="max",
        points_to_evaluate=[SPACE.first_point()],
        sampler=StatelessTPE(5),
        study_name="s",
        storage=optuna.storages.RDBStorage(f"sqlite:///{path}"),
    )


def resumed(search: KillProofSearch, study: Path, state: Path) -> KillProofSearch:
    """As Ray brings it back: from its pickle and its saved state; and we say where the study lies."""
    again = pickle.loads(pickle.dumps(search))
    assert isinstance(again, KillProofSearch)
    again.open_study(f"sqlite:///{study}")
    again.restore(str(state))
    return again


def score(proposal: Proposal) -> float:
    return -abs(proposal["learning_rate"] - 0.003)


def ask(search: KillProofSearch, name: str) -> Proposal:
    proposal = search.suggest(name)
    assert proposal is not None
    return proposal


def tell(search: KillProofSearch, name: str, proposal: Proposal) -> None:
    report = {"m": score(proposal), "training_iteration": 1, "finished": True}
    search.on_trial_result(name, report)
    search.on_trial_complete(name, report)


def unbroken(path: Path, count: int) -> list[Proposal]:
    search, proposals = make(path), []
    for number in range(count):
        proposals.append(ask(search, f"t{number}"))
        tell(search, f"t{number}", proposals[-1])
    return proposals


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_resume_from_an_old_state_proposes_what_an_unbroken_search_proposes(tmp_path: Path) -> None:
    expected = unbroken(tmp_path / "a.db", 16)

    search, proposals = make(tmp_path / "b.db"), []
    for number in range(12):
        proposals.append(ask(search, f"t{number}"))
        if number < 11:
            tell(search, f"t{number}", proposals[-1])
        if number == 9:
            search.save(str(tmp_path / "state.json"))  # the last state that Ray wrote before the kill
    again = resumed(search, tmp_path / "b.db", tmp_path / "state.json")

    # Trial 10 had ended and 11 was running; Ray's state knows neither, so both are taken up with their own numbers.
    for number in (10, 11):
        taken = ask(again, f"new-{number}")
        assert taken == proposals[number]
        assert taken["trial"] == number
        tell(again, f"new-{number}", taken)
    rest = []
    for number in range(12, 16):
        rest.append(ask(again, f"new-{number}"))
        tell(again, f"new-{number}", rest[-1])
    assert [*proposals, *rest] == expected
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'b.db'}")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 16


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_end_that_the_study_has_already_is_not_told_twice(tmp_path: Path) -> None:
    search = make(tmp_path / "a.db")
    proposal = ask(search, "t0")
    search.save(str(tmp_path / "state.json"))
    tell(search, "t0", proposal)
    again = resumed(search, tmp_path / "a.db", tmp_path / "state.json")
    tell(again, "t0", proposal)  # Ray runs its last epochs again and reports them
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'a.db'}")
    assert len(study.trials) == 1
    assert study.trials[0].value == score(proposal)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_sampler_learns(tmp_path: Path) -> None:
    """It is still TPE: after its random start it proposes rates nearer to the best one than before."""
    proposals = unbroken(tmp_path / "a.db", 50)
    early = sum(-score(p) for p in proposals[1:11]) / 10
    late = sum(-score(p) for p in proposals[30:]) / 20
    assert late < 0.8 * early


def test_parameters_of_one_trial_are_drawn_apart() -> None:
    study = optuna.create_study(sampler=pickle.loads(pickle.dumps(StatelessTPE(1))))
    trial = study.ask()
    assert trial.suggest_float("a", 0, 1) != trial.suggest_float("b", 0, 1)
