"""A best trial at a bound widens the space, once; an earlier study's best points are tried first."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from data.errors import UserError
from models.training import TrainConfig
from tune import runs
from tune.plan import plan_of
from tune.settings import SearchConfig
from tune.space import Choice, Float, Int, Space, make_space
from tune.warmstart import earlier_points
from tune.widening import WideningSpace, widened_space

DEFAULTS = {"learning_rate": 0.001, "epochs": 10, "dense_units": 32}
SPACE = make_space("default", DEFAULTS, backbone=False)


def run_study(space: WideningSpace, rates: list[float], more: int) -> optuna.Study:
    """Trials at given rates, each as good as its rate is high, and then as many as TPE likes."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for rate in rates:
        study.enqueue_trial({"learning_rate": rate, "epochs": 5, "dense_units": 32})
    for _ in range(len(rates) + more):
        trial = study.ask()
        study.tell(trial, space(trial)["learning_rate"])
    return study


def test_the_last_trials_search_beyond_the_bound_that_the_best_one_lies_at() -> None:
    study = run_study(WideningSpace(SPACE, at=3), [0.001, 0.0098, 0.003], more=60)
    wide = widened_space(SPACE, study)
    rate, epochs, units = wide.dimensions
    assert isinstance(rate, Float)
    assert math.isclose(rate.high, 0.1)  # half of two decades further, on the log scale
    assert rate.low == 1e-4
    assert (epochs, units) == SPACE.dimensions[1:]
    later = [trial.params["learning_rate"] for trial in study.trials[3:]]
    assert max(later) > 0.03
    # Once: the best is at the new bound or near it by now, and the space stays as it is.
    assert study.user_attrs["widened"] == {"learning_rate": [1e-4, rate.high]}


def test_a_best_trial_inside_widens_nothing() -> None:
    study = run_study(WideningSpace(SPACE, at=2), [0.001, 0.004], more=10)
    assert widened_space(SPACE, study) == SPACE


@pytest.mark.parametrize(
    ("dimension", "best", "bounds"),
    [
        (Float("learning_rate", 1e-4, 1e-2, "log"), 1.05e-4, (1e-5, 1e-2)),
        (Float("learning_rate", 0.1, 0.9, "log"), 0.9, (0.1, 0.999)),  # no rate of 1
        (Float("dropout", 0.0, 0.6), 0.01, (0.0, 0.6)),  # there is nothing below 0
        (Float("dropout", 0.0, 0.6), 0.6, (0.0, 0.9)),
        (Int("epochs", 3, 10), 10, (3, 14)),
        (Int("epochs", 3, 10), 3, (1, 10)),
        (Int("dense_units", 8, 128, log=True), 128, (8, 512)),
        (Int("epochs", 5, 5), 5, (5, 5)),
    ],
)
def test_how_far_a_dimension_is_widened(dimension: Float | Int, best: float, bounds: tuple[float, float]) -> None:
    wide = dimension.widened(best)  # type: ignore[arg-type]
    assert (wide.low, wide.high) == pytest.approx(bounds)


def test_the_story_scale_stays_below_one_and_names_have_no_bounds() -> None:
    story = Float("learning_rate", 0.001, 0.1, "reverse-log").widened(0.1)
    assert 0.1 < story.high < 1
    names = Choice("optimizer", ("adam", "sgd"))
    assert names.widened("adam") is names


def make_study(path: Path, *points: tuple[dict[str, Any], float | None]) -> None:
    """A study in a file as this or another program leaves it; without a value the trial failed."""
    study = optuna.create_study(storage=f"sqlite:///{path}", direction="maximize")
    scales = {
        float: optuna.distributions.FloatDistribution(1e-6, 1.0, log=True),
        int: optuna.distributions.IntDistribution(1, 1000),
        str: optuna.distributions.CategoricalDistribution(["fast", "slow"]),
    }
    for params, value in points:
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={name: scales[type(param)] for name, param in params.items()},
                value=value,
                state=state,
            )
        )


def test_the_best_points_come_first_and_those_outside_are_left_out(tmp_path: Path) -> None:
    make_study(
        tmp_path / "study.db",
        ({"learning_rate": 0.002}, 0.7),
        ({"learning_rate": 0.5}, 0.99),  # outside the space
        ({"learning_rate": 0.004}, 0.9),
        ({"learning_rate": 0.004}, 0.8),  # the same point again
        ({"learning_rate": 0.003}, None),
    )
    for source in (str(tmp_path), str(tmp_path / "study.db")):
        points = earlier_points(source, SPACE, 5)
        assert points == [{**SPACE.first_point(), "learning_rate": rate} for rate in (0.004, 0.002)]
    assert len(earlier_points(str(tmp_path), SPACE, 1)) == 1


def test_a_study_that_gives_nothing_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path / "study.db", ({"learning_rate": 0.5}, 0.9))
    make_study(tmp_path / "foreign.db", ({"learning_rate": "fast", "epochs": 3}, 0.9))
    with pytest.raises(UserError, match="none of its 1 scored trials lies in"):
        earlier_points(str(tmp_path / "foreign.db"), SPACE, 3)
    with pytest.raises(UserError, match="none of its 1 scored trials lies in this search's space"):
        earlier_points(str(tmp_path), SPACE, 3)
    (tmp_path / "torn.db").write_bytes(b"no database")
    with pytest.raises(UserError, match=r"torn\.db holds no readable study"):
        earlier_points(str(tmp_path / "torn.db"), SPACE, 3)
    with pytest.raises(UserError, match="no such file"):
        earlier_points(str(tmp_path / "nowhere"), SPACE, 3)


def test_a_plan_tries_at_most_a_quarter_of_its_trials_from_an_earlier_study(tmp_path: Path) -> None:
    make_study(tmp_path / "study.db", *(({"learning_rate": 0.001 + n / 1000}, n / 10) for n in range(1, 9)))
    plan = plan_of(SearchConfig(trials=8, warm_start=str(tmp_path)))
    assert [point["learning_rate"] for point in plan.points] == pytest.approx([0.001, 0.009, 0.008])
    assert len(plan_of(SearchConfig(trials=80, warm_start=str(tmp_path))).points) == 6


@pytest.mark.ray
def test_a_search_starts_warm_and_widens(
    ray_cluster: None, config: SearchConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The earlier study's best point lies at the upper bound and is far better than the defaults of this search."""
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    make_study(earlier / "study.db", ({"learning_rate": 0.01, "epochs": 8, "dense_units": 40}, 0.9))
    config = replace(
        config,
        train=TrainConfig(epochs=8, batch_size=16, learning_rate=0.0001, patience=0),
        trials=6,
        prune="off",
        warm_start=str(earlier),
        widen=True,
    )
    assert runs.search(config) == 0
    table = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert table["learning_rate"][:2].tolist() == pytest.approx([0.0001, 0.01])
    assert table["dense_units"][1] == 40
    search = json.loads((tmp_path / "run" / "report.json").read_text())["search"]
    assert search["best_trial"] == 1
    assert search["gain"]["difference"] > 0
    assert "learning_rate 0.0001-0.1" in search["widened_to"]
    assert "widened" in capsys.readouterr().out


def test_a_space_survives_the_way_through_its_parameters() -> None:
    for space in (SPACE, make_space("story", DEFAULTS, backbone=False)):
        assert isinstance(space, Space)
        for dimension in space.dimensions:
            value: Any = space.defaults[dimension.name]
            there: Any = dimension.to_parameter(value)
            assert dimension.holds(dimension.from_parameter(there))
            assert dimension.position(value) + 1e-9 >= 0
