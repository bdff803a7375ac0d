"""The commands' settings: checked, saved and read back, and each field read by something."""

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data.collection import DataConfig
from models.catalog import ModelConfig
from models.training import TrainConfig
from tune.settings import CommandConfig, SearchConfig, TrainJobConfig, changed_flags, from_dict

ROOT = Path(__file__).resolve().parents[1]
CONFIGS: list[type[Any]] = [CommandConfig, SearchConfig, TrainJobConfig, DataConfig, ModelConfig, TrainConfig]


def attributes_read() -> set[str]:
    """Every name that any module reads as an attribute, or names as a flag in a message."""
    names: set[str] = set()
    for package in ("data", "models", "tune", "serve"):
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text())
            checks = {
                id(node)
                for outer in ast.walk(tree)
                if isinstance(outer, ast.FunctionDef) and outer.name == "__post_init__"
                for node in ast.walk(outer)
            }
            names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and id(n) not in checks}
    return names


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_is_read_by_something(config: type[Any]) -> None:
    """Its own check in __post_init__ does not count."""
    assert {f.name for f in dataclasses.fields(config)} - attributes_read() == set()


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_help_text(config: type[Any]) -> None:
    module = Path(ROOT / (config.__module__.replace(".", "/") + ".py"))
    tree = ast.parse(module.read_text())
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == config.__name__).body
    for here, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign):
            assert isinstance(here.target, ast.Name)
            nested = dataclasses.is_dataclass(
                {f.name: f.default_factory for f in dataclasses.fields(config)}[here.target.id]
            )
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert told or nested, f"{config.__name__}.{here.target.id} has no help text"


def test_settings_survive_json() -> None:
    config = SearchConfig(
        data=DataConfig(data="/frames", group_by="video"),
        train=TrainConfig(epochs=12, batch_size=16),
        also=("dropout", "optimizer"),
        out="/runs/a",
    )
    assert from_dict(SearchConfig, json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_resume_tells_flags_that_differ() -> None:
    saved = SearchConfig(trials=6, train=TrainConfig(epochs=12))
    assert changed_flags(SearchConfig(out="/x", resume=True), saved) == []
    assert changed_flags(SearchConfig(out="/x", resume=True, trials=6), saved) == []
    given = SearchConfig(out="/x", resume=True, trials=9, train=TrainConfig(batch_size=16))
    assert changed_flags(given, saved) == ["--batch-size (was 32)", "--trials (was 6)"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials": -1}, "trials must be >= 0, got -1"),
        ({"max_concurrent": -1}, "max_concurrent must be >= 0, got -1"),
        ({"workers_per_trial": 0}, "workers_per_trial must be >= 1, got 0"),
        ({"resume": True}, "--resume needs --out"),
        ({"train": TrainConfig(learning_rate=5.0)}, "outside the search space"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**values)


def test_the_sample_gets_eight_trials_and_own_images_twenty() -> None:
    assert SearchConfig().trial_count == 8
    assert SearchConfig(data=DataConfig(data="/frames")).trial_count == 20
    assert SearchConfig(trials=3).trial_count == 3


def test_paths_become_absolute_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(model="mobilenet_v2", weights="w.pth", dense_units=64)
    config = SearchConfig(data=DataConfig(data="frames"), model=model, out="runs/a").absolute()
    assert config.data.data == str(tmp_path / "frames")
    assert config.model.weights == str(tmp_path / "w.pth")
    assert config.out == str(tmp_path / "runs/a")
    assert SearchConfig(out="s3://b/x").absolute().out == "s3://b/x"
