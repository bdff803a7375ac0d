"""What the tests of duels share: the trials that a phase would run, without running them."""

from typing import Any

import optuna


def drawn(space: Any, points: tuple[dict[str, Any], ...], trials: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in points:
        study.enqueue_trial(point)
    return [space(study.ask()) for _ in range(trials)]
