"""The study in memory for those who read it, and each change in its file before it counts."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class StudyFile(optuna.storages.InMemoryStorage):
    """Optuna's storage in memory over its storage in an SQL database, `url`, which this process alone writes to.

    Optuna's own database storage reads every trial that runs anew, in a dozen queries, for each parameter that is
    proposed: half of what a trial of no work costs in our search (benchmarks/trial_overhead.py). SQLAlchemy's
    DatabaseError or Optuna's StorageInternalError where the file is none.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._file = optuna.storages.RDBStorage(url)
        self._study_ids: dict[int, int] = {}  # in memory -> in the file
        self._trial_ids: dict[int, int] = {}
        for study in self._file.get_all_studies():
            mine = super().create_new_study(study.directions, study.study_name)
            self._study_ids[mine] = study._study_id
            for key, value in study.user_attrs.items():
                super().set_study_user_attr(mine, key, value)
            for key, value in study.system_attrs.items():
                super().set_study_system_attr(mine, key, value)
            for trial in self._file.get_all_trials(study._study_id):
                theirs = trial._trial_id
                self._trial_ids[super().create_new_trial(mine, trial)] = theirs

    def remove_session(self) -> None:
        self._file.remove_session()

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        theirs = self._file.create_new_study(directions, study_name)
        mine = super().create_new_study(directions, study_name)
        self._study_ids[mine] = theirs
        return mine

    def delete_study(self, study_id: int) -> None:
        raise NotImplementedError("delete the file")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._file.set_study_user_attr(self._study_ids[study_id], key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._file.set_study_system_attr(self._study_ids[study_id], key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        theirs = self._file.create_new_trial(self._study_ids[study_id], template_trial)
        mine = super().create_new_trial(study_id, template_trial)
        self._trial_ids[mine] = theirs
        return mine

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._file.set_trial_param(self._trial_ids[trial_id], param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self._file.set_trial_state_values(self._trial_ids[trial_id], state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._file.set_trial_intermediate_value(self._trial_ids[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._file.set_trial_user_attr(self._trial_ids[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._file.set_trial_system_attr(self._trial_ids[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, value)
