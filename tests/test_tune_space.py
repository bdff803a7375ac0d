"""The search space: bounds, scales, and the default hyperparameters as its first point."""

import math
import pickle
from typing import Any

import optuna
import pytest

from tune.space import Choice, Float, Int, Space, make_space

DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.001,
    "epochs": 10,
    "dense_units": 32,
    "optimizer": "adam",
    "dropout": 0.2,
    "weight_decay": 1e-4,
    "augment": "off",
}


def draws(space: Space, count: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    study.enqueue_trial(space.first_point())
    return [space(study.ask()) for _ in range(count)]


def test_the_first_draw_is_the_defaults() -> None:
    for name in ("default", "story"):
        first = draws(make_space(name, DEFAULTS, backbone=False), 1)[0]
        assert first["trial"] == 0
        assert first["epochs"] == 10
        assert first["dense_units"] == 32
        assert math.isclose(first["learning_rate"], 0.001, rel_tol=1e-12)


def test_draws_stay_inside_the_bounds_and_fill_them() -> None:
    space = make_space("default", DEFAULTS, backbone=False, also=("optimizer", "dropout"))
    drawn = draws(space, 400)
    for dimension in space.dimensions:
        assert all(dimension.holds(values[dimension.name]) for values in drawn)
    rates = sorted(math.log10(values["learning_rate"]) for values in drawn[1:])
    assert rates[0] < -3.9  # a log scale: the lowest decade gets half of the draws
    assert rates[-1] > -2.1
    assert 0.4 < sum(rate < -3 for rate in rates) / len(rates) < 0.6
    assert {values["optimizer"] for values in drawn} == {"adam", "adamw", "sgd"}


def test_the_storys_scale_is_nearly_linear_where_it_was_used() -> None:
    """Reverse-log is meant for values near 1; over 0.001-0.1 nine of ten draws lie above 0.01, as on a linear scale."""
    rate = Float("learning_rate", 0.001, 0.1, "reverse-log")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [rate.suggest(study.ask()) for _ in range(500)]
    assert min(drawn) >= 0.001
    assert max(drawn) <= 0.1
    assert 0.85 < sum(value > 0.01 for value in drawn) / len(drawn) < 0.95


def test_a_default_outside_the_space_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"learning_rate is 0\.5 in the first trial, outside .*another --space"):
        make_space("default", {**DEFAULTS, "learning_rate": 0.5}, backbone=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float("x", 1, 1), "bounds must rise"),
        (lambda: Float("x", 0, 1, "log"), "lower bound > 0"),
        (lambda: Float("x", 0, 1, "reverse-log"), r"bounds in \[0, 1\)"),
        (lambda: Int("x", 0, 3), "from at least 1"),
    ],
)
def test_impossible_dimensions_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_space_is_pickled_by_the_standard_pickle() -> None:
    """OptunaSearch saves its state so; a space that could not be would end every resume."""
    space = make_space("story", DEFAULTS, backbone=False, also=("augment",))
    assert pickle.loads(pickle.dumps(space)) == space


def test_a_backbone_gets_a_wider_head_and_epochs_stay_below_what_was_given() -> None:
    units = {d.name: d for d in make_space("default", {**DEFAULTS, "dense_units": 256}, backbone=True).dimensions}
    assert isinstance(units["dense_units"], Int)
    assert units["dense_units"].high == 1024
    assert isinstance(units["epochs"], Int)
    assert (units["epochs"].low, units["epochs"].high) == (3, 10)


def test_each_extra_dimension_is_said() -> None:
    space = make_space("default", DEFAULTS, backbone=False, also=("augment", "weight_decay", "augment"))
    assert [d.name for d in space.dimensions] == ["learning_rate", "epochs", "dense_units", "augment", "weight_decay"]
    assert "augment off|light|strong" in space.describe()
    assert isinstance(space.dimensions[3], Choice)
