"""Several objectives: what may be written, the trials that no other beats, and the one that is picked."""

from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest

from data.errors import UserError
from models.catalog import ModelConfig, build, parameter_count
from models.footprint import footprint
from models.predictor import Predictor
from models.training import TrainConfig
from tune import runs
from tune.budget import Budget
from tune.objectives import OBJECTIVES, pareto, parse_objectives, parse_pick, picked
from tune.settings import SearchConfig

TABLE = pd.DataFrame(
    {
        "trial": [0, 1, 2, 3, 4],
        "validation_accuracy": [0.80, 0.90, 0.85, 0.85, None],
        "latency_ms": [10.0, 30.0, 12.0, 20.0, None],
        "size_mb": [1.0, 9.0, 3.0, 3.0, None],
    }
)


def test_objectives_are_read_in_any_order_accuracy_first() -> None:
    assert [o.name for o in parse_objectives("latency, Accuracy")] == ["accuracy", "latency"]
    for text in ("latency", "accuracy,accuracy", "accuracy,speed", ""):
        with pytest.raises(ValueError, match="objective must"):
            parse_objectives(text)


@pytest.mark.parametrize(
    ("text", "told", "inside", "outside"),
    [
        ("latency<20ms", "latency < 20 ms", 19.9, 20.0),
        ("latency <= 0.02 s", "latency <= 20 ms", 20.0, 20.1),
        ("accuracy>80%", "accuracy > 0.8", 0.81, 0.8),
        ("size>=.5GB", "size >= 500 MB", 500, 499),
        ("COST<2min", "cost < 120 s", 119, 120),
    ],
)
def test_a_limit_is_read_with_its_unit(text: str, told: str, inside: float, outside: float) -> None:
    (limit,) = parse_pick(text)
    assert str(limit) == told
    assert limit.holds(inside)
    assert not limit.holds(outside)
    assert not limit.holds(float("nan"))


@pytest.mark.parametrize(
    "text",
    [
        "latency<20 parsecs",
        "latency",
        "latency<",
        "latency<20ms; import os",
        "__import__('os').system('touch /tmp/owned')",
        "latency<20ms or True",
        "latency<2**10",
        "latency<-1ms",
        "latency<nan",
        "latency==20ms",
        "latency<20ms,,size<1MB",
        "accuracy>80",
    ],
)
def test_a_pick_is_parsed_and_never_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match="pick"):
        parse_pick(text)
    with pytest.raises(ValueError, match="pick"):
        SearchConfig(objective="accuracy,latency,size", pick=text)


def test_a_pick_needs_its_objective_measured() -> None:
    with pytest.raises(ValueError, match="give --objective accuracy,latency"):
        SearchConfig(pick="latency<20ms")
    SearchConfig(pick="accuracy>0.5, cost<1h")  # every trial has these


def test_a_wrong_pick_is_refused_when_a_run_is_resumed_too() -> None:
    with pytest.raises(ValueError, match="pick must be like"):
        SearchConfig(resume=True, out="run", pick="speed<1ms")
    with pytest.raises(UserError, match="--pick names latency, which this search did not measure"):
        SearchConfig(out="run").resumed_by(SearchConfig(resume=True, out="run", pick="latency<1ms"))


def test_a_resume_changes_of_the_budget_only_what_it_names() -> None:
    begun = SearchConfig(out="run", budget=Budget(budget_usd=1.0, instance_type="g5.xlarge"))
    given = SearchConfig(resume=True, out="run", budget=Budget(budget_usd=5.0))
    assert begun.resumed_by(given).budget == Budget(budget_usd=5.0, instance_type="g5.xlarge")
    assert begun.resumed_by(SearchConfig(resume=True, out="run")).budget == begun.budget


def test_the_front_holds_what_no_other_beats() -> None:
    assert pareto(TABLE, parse_objectives("accuracy,latency")) == [1, 2, 0]  # 3 is as good as 2 and slower
    assert pareto(TABLE, parse_objectives("accuracy,size")) == [1, 2, 3, 0]  # equals stand side by side


def test_the_pick_keeps_to_its_limits_or_says_that_none_does() -> None:
    strict, keeps = picked(TABLE, parse_pick("latency<20ms, accuracy>0.80"))
    assert keeps
    assert list(strict["trial"]) == [2]  # neither 20 ms nor 0.80 keeps to it
    kept, keeps = picked(TABLE, parse_pick("latency<25ms, size<5MB"))
    assert keeps
    assert list(kept["trial"]) == [0, 2, 3]
    nearest, keeps = picked(TABLE, parse_pick("latency<1ms"))
    assert not keeps
    assert list(nearest["trial"]) == [0]
    assert picked(TABLE, ())[0] is TABLE


def test_a_footprint_is_that_of_the_whole_network() -> None:
    for config in (ModelConfig(dense_units=8), ModelConfig(model="resnet18", weights="none", base="finetune")):
        measured = footprint(config, classes=3, image_size=32)
        network = build(config, classes=3, image_size=32, load_weights=False)
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
        assert measured.size_mb * 1e6 == pytest.approx(4 * parameter_count(network) + buffers)
        assert measured.latency_ms > 0


@pytest.mark.ray
def test_a_search_for_two_objectives_gives_a_choice_and_picks_from_it(
    ray_cluster: None, config: SearchConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    out = tmp_path / "run"
    config = replace(
        config,
        train=TrainConfig(epochs=3, batch_size=16, learning_rate=0.003),
        trials=4,
        objective="accuracy,size",
    )
    assert runs.search(config) == 0
    table = pd.read_csv(out / "trials.csv")
    search = json.loads((out / "report.json").read_text())["search"]
    assert [point["trial"] for point in search["pareto"]] == pareto(table, config.objectives)
    study = optuna.load_study(study_name="eagleray", storage=f"sqlite:///{out / 'study.db'}")
    assert [t.values for t in study.trials] == [
        pytest.approx(list(row)) for row in table[["validation_accuracy", "size_mb"]].to_numpy()
    ]
    # Wider heads are larger files: the smallest trial is that of the fewest dense units.
    assert table["size_mb"].idxmin() == table["dense_units"].idxmin()

    small = float(table["size_mb"].min())
    again = SearchConfig(resume=True, out=str(out), pick=f"size<={small}MB")
    assert runs.search(again) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["search"]["best_trial"] == table["size_mb"].idxmin()
    assert report["search"]["pick"]["kept"]
    assert Predictor.load(str(out / "bundle")).info.id == report["bundle"]["id"]
    assert "is the most accurate of those with size" in capsys.readouterr().out


def test_every_objective_has_a_column_and_a_worst_value() -> None:
    for objective in OBJECTIVES.values():
        assert objective.worst == (0.0 if objective.mode == "max" else 1e9)
