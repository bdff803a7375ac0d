"""`report.json` and the last lines of a run: what was found, how sure that is, and what to type next."""

import importlib.metadata
import shlex
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from data.collection import Collection
from data.words import counted
from models.catalog import ModelConfig
from models.metrics import beats_majority
from tune.bundling import Scored
from tune.doctor import examination
from tune.doctor.facts import Finding
from tune.duel.words import duel_lines
from tune.gain import words
from tune.objectives import Limit, pareto
from tune.outputs import RunFolder
from tune.plan import Plan
from tune.searching import Finished
from tune.space import NUMBER
from tune.trials import SCORE


def describe_data(collection: Collection) -> dict[str, Any]:
    """What the images were: source, counts a split and class, how groups were formed, problems by kind."""
    table = collection.table
    return {
        "source": collection.config.data or "generated sample",
        "generated": collection.generated,
        "images": len(table),
        "classes": list(collection.classes),
        "per_split": {str(k): int(v) for k, v in table["split"].value_counts().sort_index().items()},
        "groups_per_split": {str(k): int(v) for k, v in table.groupby("split")["group"].nunique().items()},
        "per_class": {str(k): int(v) for k, v in table["label"].value_counts().sort_index().items()},
        "grouping": collection.grouping,
        "notes": list(collection.notes),
        "problems": {str(k): int(v) for k, v in collection.problems["problem"].value_counts().sort_index().items()},
        "image_size": collection.resize.size,
        "resize": collection.resize.mode,
        "fingerprints": collection.fingerprints(),
    }


def describe_search(
    finished: Finished, best: pd.Series, plan: Plan, limits: tuple[Limit, ...], keeps: bool
) -> dict[str, Any]:
    """How the search went: trials by status, the picked one's hyperparameters, the score of the default ones, and with
    several objectives the trials that no other beats. `keeps` is whether the picked trial keeps to the limits."""
    table, space = finished.table, plan.space
    first = table.loc[(table[NUMBER] == 0) & (table["status"] == "finished"), SCORE].dropna()
    columns = [objective.column for objective in plan.objectives]
    front = pareto(table, plan.objectives) if len(columns) > 1 else []
    return {
        "space": space.describe(),
        "widened_to": finished.space.describe() if finished.space != space else None,
        "trials": len(table),
        "by_status": {str(k): int(v) for k, v in table["status"].value_counts().sort_index().items()},
        "ended": finished.interrupted,
        "best_trial": int(best[NUMBER]),
        "best_hyperparameters": {name: _plain(best[name]) for name in space.names},
        "best_validation_accuracy": float(best[SCORE]),
        "default_validation_accuracy": None if first.empty else float(first.iloc[0]),
        "objectives": [objective.name for objective in plan.objectives],
        "pick": {"limits": [str(limit) for limit in limits], "kept": keeps},
        "pareto": [
            {NUMBER: number, **{column: _plain(table.set_index(NUMBER).loc[number, column]) for column in columns}}
            for number in front
        ],
    }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def make_report(
    run: RunFolder,
    collection: Collection,
    model: ModelConfig,
    scored: Scored,
    extra: dict[str, Any],
    cache: dict[str, Any],
) -> dict[str, Any]:
    """Everything in `report.json`; `extra` is the search's or the training's own part."""
    return {
        "eagleray": importlib.metadata.version("eagleray"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": {"path": run.bundle, "id": scored.info.id},
        "model": {"name": model.model, "weights": model.source, "base": "frozen" if model.frozen else "trained"},
        **extra,
        "data": describe_data(collection),
        "validation": scored.metrics["validation"],
        "test": scored.metrics["test"],
        "temperature": scored.info.temperature,
        "thresholds": scored.info.thresholds,
        "learning_curve": scored.info.learning_curve,
        "cache": cache,
    }


def last_lines(report: dict[str, Any], run: RunFolder) -> list[str]:
    """The end of a run on the terminal: the bundle, its scores beside the baseline, and the command that serves it."""
    data = report["data"]
    lines, bundle = [""], shlex.quote(run.bundle)
    if data["generated"]:
        lines.append("These images were generated, not photographed: give your own with --data.")
    lines += [f"note        {note}" for note in [data["grouping"], *data["notes"]]]
    if sum(data["problems"].values()):
        counted = ", ".join(f"{count} {kind}" for kind, count in data["problems"].items())
        lines.append(f"problems    {counted}: see {run.out}/problems.csv")
    if "search" in report:
        lines += _search_lines(report["search"])
    if "duel" in report:
        lines += duel_lines(report["duel"])
    lines += [f"{split:<12}{_score_line(report[split])}" for split in ("validation", "test")]
    lines += [f"verdict     {line}" for line in verdicts(report)]
    found = [Finding(**finding) for finding in report.get("search", {}).get("doctor", [])]
    lines += examination.lines(examination.of_trials(found))
    if "spending" in report:
        lines.append(f"cost        {_cost_line(report['spending'])}")
    lines += [
        f"bundle      {run.bundle}  (model {report['bundle']['id']})",
        f"serve it    uv run serve/app.py --bundle {bundle}",
        f"label with  uv run serve/classify.py --bundle {bundle} --images FOLDER --out predictions.csv",
    ]
    return lines


def verdicts(report: dict[str, Any]) -> list[str]:
    """What the numbers say in words, where they say that something is missing."""
    test, lines = report["test"], []
    if "search" in report:
        search = report["search"]
        lines.append(words(search["gain"], search["best_trial"], search["top_trial"]))
    if not beats_majority(test):
        lines.append(
            f"not shown to be better than always naming {test['majority_label']} ({test['majority_rate']:.3f} on "
            f"{counted(test['n'], 'test image')}), so no answer is called confident: give more images, more --epochs, "
            "or a pretrained --model"
        )
    elif report["thresholds"].get("confident") is None:
        lines.append("no probability is called confident: the validation images are too few or too often wrong")
    return lines


def _search_lines(search: dict[str, Any]) -> list[str]:
    best, default = search["best_validation_accuracy"], search["default_validation_accuracy"]
    counted = ", ".join(f"{count} {status}" for status, count in search["by_status"].items())
    compared = "" if default is None or search["best_trial"] == 0 else f", the defaults reached {default:.3f}"
    lines = [f"search      {counted}; validation accuracy {best:.3f} in trial {search['best_trial']}{compared}"]
    if search["widened_to"]:
        lines.append(f"widened     {search['widened_to']}")
    for point in search["pareto"]:
        values = ", ".join(f"{name} {value:.4g}" for name, value in point.items() if name != NUMBER)
        lines.append(f"choice      trial {point[NUMBER]}: {values}")
    limits = ", ".join(search["pick"]["limits"])
    if limits and not search["pick"]["kept"]:
        lines.append(f"pick        no trial keeps to {limits}: trial {search['best_trial']} comes nearest")
    elif limits:
        lines.append(f"pick        trial {search['best_trial']} is the most accurate of those with {limits}")
    return lines


def _cost_line(spending: dict[str, float]) -> str:
    return (
        f"{spending['usd']:.4g} USD by the price table, {spending['minutes']:.1f} minutes of searching, "
        f"{spending['cpu_seconds']:.0f} CPU-seconds of training"
    )


def _score_line(scores: dict[str, Any]) -> str:
    low, high = scores["accuracy_interval"]
    return (
        f"accuracy {scores['accuracy']:.3f} (95 % interval {low:.3f}-{high:.3f}, {counted(scores['n'], 'image')}); "
        f"always naming {scores['majority_label']} gives {scores['majority_rate']:.3f}; "
        f"balanced {scores['balanced_accuracy']:.3f}, macro-F1 {scores['macro_f1']:.3f}, "
        f"log loss {scores['log_loss']:.3f}"
    )
