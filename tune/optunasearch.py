"""Optuna's proposals, made so that a kill loses nothing: they follow from the study, not from a process's memory."""

import hashlib
import json
from pathlib import Path
from typing import Any

import optuna
import ray.tune.search.optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from data.errors import UserError


class StatelessTPE(optuna.samplers.BaseSampler):
    """Optuna's TPE, with random numbers that follow from (seed, number of the trial, name of the parameter).

    A sampler's own generator would be put back by a resume to where it stood when Ray last saved it, and would then
    propose again what it had proposed in between. `constant_liar` keeps trials that run at one time apart.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}  # each parameter by itself, as TPE does unless it is told otherwise

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        digest = hashlib.sha256(f"{self._seed} {trial.number} {param_name}".encode()).digest()
        sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4]), constant_liar=True)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class KillProofSearch(ray.tune.search.optuna.OptunaSearch):
    """OptunaSearch whose memory is the study: Ray's saved state only says which of its trials is which in the study.

    After a resume `open_study` says where the study now lies (it may have come back from a bucket to another folder),
    and trials which the study has and Ray's state does not are taken up.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_storage": None, "_ot_study": None, "_ot_trials": {}}

    def open_study(self, url: str) -> None:
        """Go on with the study in an SQLAlchemy `url`, which must hold one of this search's name."""
        try:
            storage = optuna.storages.RDBStorage(url)
            study = optuna.load_study(study_name=self._study_name, storage=storage, sampler=self._sampler)
        except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError, KeyError) as error:
            raise UserError(f"{url} holds no readable study ({error}); begin a new search in another --out") from error
        vars(self).update(_storage=storage, _ot_study=study)

    def save(self, checkpoint_path: str) -> None:
        numbers = {trial_id: trial.number for trial_id, trial in self._ot_trials.items()}
        Path(checkpoint_path).write_text(json.dumps({"numbers": numbers, "completed": sorted(self._completed_trials)}))

    def restore(self, checkpoint_path: str) -> None:
        assert callable(self._space)
        state = json.loads(Path(checkpoint_path).read_text())
        while len(self._study.get_trials(deepcopy=False)) <= max(state["numbers"].values(), default=-1):
            # The study came back from a bucket and is older than Ray's state: its next proposal is the one it had made.
            self._space(self._study.ask())
        trials = self._study.get_trials(deepcopy=False)
        self._ot_trials = {
            trial_id: optuna.Trial(self._study, trials[number]._trial_id)
            for trial_id, number in state["numbers"].items()
        }
        self._completed_trials = set(state["completed"])

    @property
    def _study(self) -> optuna.Study:
        study: optuna.Study | None = self._ot_study
        assert study is not None, "the space is given to the constructor, which opens the study"
        return study

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if trial_id not in self._ot_trials:
            lost = self._lost_trial()
            if lost is not None:
                self._ot_trials[trial_id] = lost
        proposed: dict[str, Any] | None = super().suggest(trial_id)
        return proposed

    def _lost_trial(self) -> optuna.Trial | None:
        """The first trial that was asked for and whose asker was killed before Ray wrote it down."""
        known = {trial.number for trial in self._ot_trials.values()}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in known:
                return optuna.Trial(self._study, trial._trial_id)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        step = result["training_iteration"]
        if not self._ended(trial_id) and step not in self._stored(trial_id).intermediate_values:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not self._ended(trial_id):
            super().on_trial_complete(trial_id, result, error)

    def _ended(self, trial_id: str) -> bool:
        """Whether the study has this trial's end already, because the kill came after it and before Ray's next save."""
        return bool(self._stored(trial_id).state.is_finished())

    def _stored(self, trial_id: str) -> FrozenTrial:
        stored: FrozenTrial = self._study.get_trials(deepcopy=False)[self._ot_trials[trial_id].number]
        return stored
