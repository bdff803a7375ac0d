"""`--widen`: where the best trial lies at a bound of the space, the last trials search beyond it. Once."""

from dataclasses import dataclass
from typing import Any

import optuna
import tqdm
from optuna.trial import TrialState

from tune.space import Dimension, Space, Values

_ATTRIBUTE = "widened"


@dataclass(frozen=True)
class WideningSpace:
    """`space`, and from trial number `at` on what it was widened to. What was decided is kept in the study, so that a
    resumed search and concurrent trials decide alike."""

    space: Space
    at: int

    def __call__(self, trial: optuna.Trial) -> Values:
        if trial.number < self.at:
            return self.space(trial)
        if _ATTRIBUTE not in trial.study.user_attrs:
            best = _best(trial.study)
            wide = self.space.widened(_values(self.space, best)) if best is not None else self.space
            trial.study.set_user_attr(_ATTRIBUTE, _changes(self.space, wide))
            if wide != self.space:
                tqdm.tqdm.write(f"widened     the best trial lies at a bound; from here on {wide.describe()}")
        return widened_space(self.space, trial.study)(trial)


def widened_space(space: Space, study: optuna.Study) -> Space:
    """The space that the study's last trials were drawn from."""
    changes: dict[str, Any] = study.user_attrs.get(_ATTRIBUTE, {})
    dimensions = [_moved(dimension, changes.get(dimension.name)) for dimension in space.dimensions]
    return Space(tuple(dimensions), space.defaults)


def _moved(dimension: Dimension, bounds: list[Any] | None) -> Dimension:
    """The dimension with the bounds that the study has for it, if any."""
    if bounds is None:
        return dimension
    changed = dict(vars(dimension), low=bounds[0], high=bounds[1])
    return type(dimension)(**changed)


def _changes(space: Space, wide: Space) -> dict[str, Any]:
    pairs = zip(space.dimensions, wide.dimensions, strict=True)
    return {new.name: [vars(new)["low"], vars(new)["high"]] for old, new in pairs if new != old}


def _best(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    """By the first objective, which is the accuracy."""
    scored = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(scored, key=lambda trial: (trial.values[0], -trial.number), default=None)


def _values(space: Space, trial: optuna.trial.FrozenTrial) -> Values:
    return {d.name: d.from_parameter(trial.params[d.parameter]) for d in space.dimensions}
