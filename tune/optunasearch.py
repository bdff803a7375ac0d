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
from tune.studyfile import StudyFile


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

    After a resume `open_study` says where the study now lies (it may have come back from a bucket to another folder; it
    is never older than Ray's state), and trials which the study has and Ray's state does not are taken up. A trial that
    ends before its epochs did, and not by a failure, is PRUNED in the study: its value is one of few epochs, and the
    sampler must not take it for more. `pruner` decides that (one objective only; Optuna has none for several).
    """

    closed = False
    """No further trial is proposed once this is set."""
    held = False
    """None is proposed while this is set."""

    def __init__(self, *, pruner: optuna.pruners.BasePruner | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._pruner = pruner
        self.study.pruner = pruner or optuna.pruners.NopPruner()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_storage": None, "_ot_study": None, "_ot_trials": {}, "closed": False, "held": False}

    def open_study(self, url: str) -> None:
        """Go on with the study in an SQLAlchemy `url`, which must hold one of this search's name."""
        try:
            storage = StudyFile(url)
            study = optuna.load_study(
                study_name=self._study_name, storage=storage, sampler=self._sampler, pruner=self._pruner
            )
        except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError, KeyError) as error:
            raise UserError(f"{url} holds no readable study ({error}); begin a new search in another --out") from error
        vars(self).update(_storage=storage, _ot_study=study)

    def save(self, checkpoint_path: str) -> None:
        numbers = {trial_id: trial.number for trial_id, trial in self._ot_trials.items()}
        Path(checkpoint_path).write_text(json.dumps({"numbers": numbers, "completed": sorted(self._completed_trials)}))

    def restore(self, checkpoint_path: str) -> None:
        state = json.loads(Path(checkpoint_path).read_text())
        trials = self.study.get_trials(deepcopy=False)
        self._ot_trials = {
            trial_id: optuna.Trial(self.study, trials[number]._trial_id)
            for trial_id, number in state["numbers"].items()
        }
        self._completed_trials = set(state["completed"])

    @property
    def _metrics(self) -> list[str]:
        given: Any = self.metric
        return given if isinstance(given, list) else [given]

    @property
    def study(self) -> optuna.Study:
        study: optuna.Study | None = self._ot_study
        assert study is not None, "the space is given to the constructor, which opens the study"
        return study

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self.closed or self.held:
            return None
        if trial_id not in self._ot_trials:
            lost = self._lost_trial()
            if lost is not None:
                self._ot_trials[trial_id] = lost
        proposed: dict[str, Any] | None = super().suggest(trial_id)
        return proposed

    def should_prune(self, trial_id: str) -> bool:
        """Whether the pruner ends this trial, by what the study holds of it and of the trials before it."""
        if self._pruner is None or trial_id not in self._ot_trials or self._ended(trial_id):
            return False
        return self._pruner.prune(self.study, self._trial(trial_id))

    def running(self) -> set[int]:
        """Numbers of the trials that the study has as running."""
        return {trial.number for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}

    def give_up_running(self) -> None:
        """At the end of a search: what a kill left running in the study has failed. It would puzzle later readers."""
        for number in self.running():
            self.study.tell(number, state=TrialState.FAIL)

    def _lost_trial(self) -> optuna.Trial | None:
        """The first trial that was asked for and whose asker was killed before Ray wrote it down.

        It is trained again even if it had ended, with its own number and values: its checkpoint is known to nobody.
        """
        known = {trial.number for trial in self._ot_trials.values()}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state != TrialState.WAITING and trial.number not in known:
                return optuna.Trial(self.study, trial._trial_id)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if len(self._metrics) == 1 and not self._ended(trial_id):  # Optuna takes no reports with several objectives
            self._report(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._completed_trials.add(trial_id)
        if self._ended(trial_id) or error:
            return  # a trial whose process died is tried again by a resume: the study has it running until then
        failed = result is not None and result.get("failure")
        if failed and (not (result or {}).get("diverged") or len(self._metrics) > 1):
            # A full disk says nothing of the hyperparameters, and worst values in each objective would bend the front.
            self._tell(trial_id, TrialState.FAIL)
        elif result is None and not self.should_prune(trial_id):
            self._tell(trial_id, TrialState.FAIL)
        elif result is not None and (result.get("finished") or failed):
            self.on_trial_result(trial_id, result)
            self._tell(trial_id, TrialState.COMPLETE, [float(result[name]) for name in self._metrics])
        else:
            self._tell(trial_id, TrialState.PRUNED)

    def _report(self, trial_id: str, result: dict[str, Any]) -> None:
        step, value = int(result["training_iteration"]), float(result[self._metrics[0]])
        if step not in self._trial(trial_id).intermediate_values:
            self._ot_trials[trial_id].report(value, step)

    def _tell(self, trial_id: str, state: TrialState, values: list[float] | None = None) -> None:
        self.study.tell(self._ot_trials[trial_id].number, values, state=state)

    def _ended(self, trial_id: str) -> bool:
        """Whether the study has this trial's end already, because the kill came after it and before Ray's next save."""
        return bool(self._trial(trial_id).state.is_finished())

    def _trial(self, trial_id: str) -> FrozenTrial:
        stored: FrozenTrial = self.study.get_trials(deepcopy=False)[self._ot_trials[trial_id].number]
        return stored
