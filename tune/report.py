"""`report.json` and the last lines of a run: what was found, how sure that is, and what to type next."""

import importlib.metadata
import shlex
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from data.collection import Collection
from models.catalog import ModelConfig
from tune.bundling import Scored
from tune.outputs import RunFolder
from tune.space import NUMBER, Space
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


def describe_search(table: pd.DataFrame, best: pd.Series, space: Space) -> dict[str, Any]:
    """How the search went: trials by status, the best one's hyperparameters, and the score of the default ones."""
    first = table.loc[(table[NUMBER] == 0) & (table["status"] != "failed"), SCORE].dropna()
    default = None if first.empty else float(first.iloc[0])
    return {
        "space": space.describe(),
        "trials": len(table),
        "by_status": {str(k): int(v) for k, v in table["status"].value_counts().sort_index().items()},
        "best_trial": int(best[NUMBER]),
        "best_hyperparameters": {name: _plain(best[name]) for name in space.names},
        "best_validation_accuracy": float(best[SCORE]),
        "default_validation_accuracy": default,
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
        lines.append(f"search      {_verdict(report['search'])}")
    lines += [f"{split:<12}{_score_line(report[split])}" for split in ("validation", "test")]
    lines += [f"verdict     {line}" for line in _verdicts(report)]
    lines += [
        f"bundle      {run.bundle}  (model {report['bundle']['id']})",
        f"serve it    uv run serve/app.py --bundle {bundle}",
        f"label with  uv run serve/classify.py --bundle {bundle} --images FOLDER --out predictions.csv",
    ]
    return lines


def _verdicts(report: dict[str, Any]) -> list[str]:
    """What the numbers say in words, where they say that something is missing."""
    test, lines = report["test"], []
    if test["accuracy_interval"][0] <= test["majority_rate"]:
        lines.append(
            f"not shown to be better than always naming {test['majority_label']} ({test['majority_rate']:.3f} on "
            f"{test['n']} test images): give more images, more --epochs, or a pretrained --model"
        )
    if report["thresholds"].get("confident") is None:
        lines.append("no probability is called confident: the validation images are too few or too often wrong")
    return lines


def _verdict(search: dict[str, Any]) -> str:
    best, default = search["best_validation_accuracy"], search["default_validation_accuracy"]
    counted = ", ".join(f"{count} {status}" for status, count in search["by_status"].items())
    if default is None:
        compared = "the default hyperparameters gave no score to compare with"
    elif search["best_trial"] == 0:
        compared = "nothing beat the default hyperparameters"
    else:
        compared = f"the default hyperparameters reached {default:.3f}"
    return f"{counted}; best validation accuracy {best:.3f} in trial {search['best_trial']}, {compared}"


def _score_line(scores: dict[str, Any]) -> str:
    low, high = scores["accuracy_interval"]
    return (
        f"accuracy {scores['accuracy']:.3f} (95 % interval {low:.3f}-{high:.3f}, {scores['n']} images); "
        f"always naming {scores['majority_label']} gives {scores['majority_rate']:.3f}; "
        f"balanced {scores['balanced_accuracy']:.3f}, macro-F1 {scores['macro_f1']:.3f}, "
        f"log loss {scores['log_loss']:.3f}"
    )
