"""What one search runs: space, number of trials, first points, objectives, pruning."""

from dataclasses import dataclass
from typing import Any

import optuna

from tune.objectives import ACCURACY, MEASURED, Objective
from tune.pruning import Halving
from tune.settings import SearchConfig
from tune.space import Int, Space, Values
from tune.warmstart import earlier_points
from tune.widening import WideningSpace, widened_space

# The first rung of the halving lies at this share of the most epochs, and not below two: a first epoch says little.
_GRACE_SHARE = 6
_LEAST_GRACE = 2
# At most this many points of an earlier study, and never more than a quarter of the trials.
_MOST_EARLIER = 5


@dataclass(frozen=True)
class Plan:
    """`points` are the first proposals, as Optuna parameters; the trial of the first is number 0 and never pruned.
    `default_trial` is the one with the default hyperparameters, None where there is none."""

    space: Space
    trials: int
    points: tuple[Values, ...]
    objectives: tuple[Objective, ...] = (ACCURACY,)
    pruner: Halving | None = None
    widen_at: int | None = None
    default_trial: int | None = 0

    @property
    def proposals(self) -> Any:
        """What Optuna is asked for each trial: a function of an Optuna trial."""
        return self.space if self.widen_at is None else WideningSpace(self.space, self.widen_at)

    def metric(self) -> Any:
        """Key or keys of a trial's report, as Tune's searcher wants them."""
        return self._one_or_list([objective.metric for objective in self.objectives])

    def mode(self) -> Any:
        return self._one_or_list([objective.mode for objective in self.objectives])

    def _one_or_list(self, values: list[Any]) -> Any:
        return values[0] if len(values) == 1 else values

    @property
    def measures(self) -> bool:
        """Whether an objective is a number of the network itself, which has to be measured."""
        return any(objective.name in MEASURED for objective in self.objectives)

    def searched(self, study: optuna.Study) -> Space:
        """The space that the search ended with."""
        return widened_space(self.space, study)


def plan_of(config: SearchConfig, *, begun: bool = False) -> Plan:
    """The plan that a search's settings ask for. `UserError` where the earlier study gives no point; it is not asked
    for any where the search has `begun`."""
    space, count, objectives = config.search_space(), config.trial_count, config.objectives
    points = [space.first_point()]
    if config.warm_start and not begun:
        most = max(1, min(_MOST_EARLIER, count // 4))
        points += [p for p in earlier_points(config.warm_start, space, most + 1) if p != points[0]][:most]
    return Plan(
        space=space,
        trials=count,
        points=tuple(points),
        objectives=objectives,
        pruner=_pruner(config, space) if len(objectives) == 1 else None,
        widen_at=count - max(1, count // 3) if config.widen else None,
    )


def _pruner(config: SearchConfig, space: Space) -> Halving | None:
    """None where it is switched off, and where trials are too short to be judged on the way."""
    epochs = next((d.high for d in space.dimensions if d.name == "epochs" and isinstance(d, Int)), 0)
    grace = max(_LEAST_GRACE, epochs // _GRACE_SHARE)
    return Halving(grace) if config.prune == "asha" and epochs >= 2 * grace else None
