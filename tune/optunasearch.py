"""Optuna's proposals, made so that a kill loses nothing: they follow from the study, not from a process's memory."""

import hashlib
import logging
from typing import Any

import optuna
import ray.tune.search.optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

log = logging.getLogger(__name__)


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
    """OptunaSearch that, after a resume, takes up the trials which the study has and Ray's saved state does not."""

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
        if not self._ended(trial_id):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not self._ended(trial_id):
            super().on_trial_complete(trial_id, result, error)

    def _ended(self, trial_id: str) -> bool:
        """Whether the study has this trial's end already, because the kill came after it and before Ray's next save."""
        trial = self._ot_trials[trial_id]
        stored = self._study.get_trials(deepcopy=False)[trial.number]
        return bool(stored.state.is_finished())
