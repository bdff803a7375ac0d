"""Which trials end early: successive halving over epochs, decided from what the study holds and from nothing else."""

from typing import Any

import optuna
import ray.tune.schedulers
from optuna.trial import FrozenTrial

from tune.optunasearch import KillProofSearch
from tune.trials import TuneTrial


class Halving(optuna.pruners.BasePruner):
    """Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020).

    At `grace` epochs, and at each `reduction`-th multiple of the last such rung, a trial goes on if its value is among
    the best 1/`reduction` of those that it and the trials before it had at the same number of epochs. Nothing is judged
    before `reduction` trials have come so far, and the trials in `spared` never are.

    Ray's own scheduler would do the same from a memory that Tune does not save, and Optuna's pruner writes down that it
    has judged before anyone has obeyed; after a kill both let a trial go on which they had stopped.
    """

    def __init__(self, grace: int, *, reduction: int = 3, spared: tuple[int, ...] = (0,)) -> None:
        self._grace, self._reduction, self._spared = grace, reduction, spared

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        rung = max(trial.intermediate_values, default=0)
        if not self._is_rung(rung) or trial.number in self._spared:
            return False
        mine = trial.intermediate_values[rung]
        others = [
            other.intermediate_values[rung]
            for other in study.get_trials(deepcopy=False)
            if other.number < trial.number and rung in other.intermediate_values
        ]
        count = len(others) + 1
        if count < self._reduction:
            return False
        better = sum(value > mine for value in others)
        return better >= -(-count // self._reduction)

    def _is_rung(self, epochs: int) -> bool:
        step = self._grace
        while step < epochs:
            step *= self._reduction
        return step == epochs


class PruneByStudy(ray.tune.schedulers.FIFOScheduler):
    """Tune's scheduler interface around the study's pruner. It also has each trial's end written down at once: Tune
    writes its state at intervals, and a kill before the next would have the trial trained again."""

    def __init__(self, search: KillProofSearch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.search = search
        self._ended = 0
        self._begun = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ended": 0, "_begun": False}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        self.search.on_trial_result(trial.trial_id, result)
        decision: str = self.STOP if self.search.should_prune(trial.trial_id) else self.CONTINUE
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        # Tune's limiter of concurrency passes on no end of a trial that it once saw fail. Being told twice is no harm.
        self.search.on_trial_complete(trial.trial_id, result)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        if trial.should_recover():
            self.search.held = True  # no other trial is proposed before this one is back, or it would be another one

    def _try_again(self, tune_controller: Any, trials: list[TuneTrial]) -> None:
        """Tune tries a trial again whose process died at work, but not one whose process died before its first step."""
        for trial in trials:
            if trial.status == TuneTrial.ERROR and trial.should_recover():
                trial.run_metadata.error_filename = trial.run_metadata.pickled_error_filename = None
                tune_controller._set_trial_status(trial, TuneTrial.PENDING)
                tune_controller._tune_controller._live_trials.add(trial)
        self.search.held = False

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # A kill may have come between a decision and its execution: the trial is back, and has reached its end.
        trials: list[TuneTrial] = list(tune_controller.get_trials())
        self._try_again(tune_controller, trials)
        for trial in trials:
            waits = trial.status == TuneTrial.PENDING and trial.last_result
            if waits and self.search.should_prune(trial.trial_id):
                tune_controller.stop_trial(trial)
        ended = sum(trial.is_finished() for trial in trials)
        if not self._begun:  # a study that came back from a bucket may be older than Ray's state
            for trial in trials:
                if trial.status == TuneTrial.TERMINATED and trial.last_result:
                    self.search.on_trial_complete(trial.trial_id, trial.last_result)
        self._begun = True
        if ended != self._ended:
            # Schedulers get the controller behind a wrapper that warns of what it does not know.
            tune_controller._tune_controller.checkpoint(force=True)
            self._ended = ended
        return super().choose_trial_to_run(tune_controller)
