"""The table of trials: a row for each, from Ray Tune's own records, as `trials.csv` and as lines on the terminal."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
import ray.tune.experiment

from data import store
from data.words import counted
from tune.objectives import ACCURACY, MEASURED, OBJECTIVES
from tune.space import NUMBER

TuneTrial = ray.tune.experiment.Trial

# The scores of a trial as they stand in its last report; a failed trial has none of them.
_SCORES = {
    "epochs_run": "epoch",
    "best_epoch": "best_epoch",
    ACCURACY.column: ACCURACY.metric,
    "validation_loss": "best_validation_loss",
    "last_training_accuracy": "training_accuracy",
    "last_validation_loss": "validation_loss",
    "top_share": "validation_top_share",
    "dead_units": "dead_units",
    "images_per_second": "images_per_second",
    "cpu_seconds": "cpu_seconds",
    "cost_s": "cost_s",
}
# What the network costs to run; there only where it is an objective of the search.
_MEASURED = {OBJECTIVES[name].column: OBJECTIVES[name].metric for name in MEASURED}
SCORE = ACCURACY.column
TIEBREAK = "validation_loss"


def trial_table(
    trials: Sequence[TuneTrial], names: Sequence[str], *, unended: Collection[int] | None = None
) -> pd.DataFrame:
    """One row a trial, by number: `trial`, the searched hyperparameters `names`, `status`, scores, costs, error.

    `status` is waiting, running, finished (its epochs or early stopping ended it), pruned (it was behind others after
    as many epochs), stopped (begun, and the search has ended before it) or failed. Accuracies and shares
    lie in [0, 1]; `seconds` are those of training and validation, `cpu_seconds` those of all its workers' processors.
    `unended` are the trials that the study has as running, given once the search has ended.
    """
    rows = [_row(trial, names, unended) for trial in sorted(trials, key=trial_number)]
    measured = [column for column in _MEASURED if any(row.get(column) is not None for row in rows)]
    columns = [NUMBER, *names, "status", *_SCORES, *measured, "seconds", "error"]
    return pd.DataFrame(rows, columns=columns)


def trial_number(trial: TuneTrial) -> int:
    """Its place in the search, from 0 (the default hyperparameters): the number that Optuna gives it too."""
    return int(trial.config[NUMBER])


def _row(trial: TuneTrial, names: Sequence[str], unended: Collection[int] | None) -> dict[str, Any]:
    report = trial.last_result or {}
    error = _error(trial)
    row: dict[str, Any] = {
        NUMBER: trial_number(trial),
        **{name: trial.config.get(name) for name in names},
        "status": _status(trial, error, unended),
        "seconds": report.get("time_total_s"),
        "error": error,
    }
    if not error:
        row |= {column: report.get(key) for column, key in {**_SCORES, **_MEASURED}.items()}
    return row


def _error(trial: TuneTrial) -> str:
    failure = (trial.last_result or {}).get("failure")
    if failure:
        return str(failure)
    if trial.status != TuneTrial.ERROR:
        return ""
    text = str(trial.get_error() or "the trial's process ended without a word").strip()
    return text.splitlines()[-1]


def _status(trial: TuneTrial, error: str, unended: Collection[int] | None) -> str:
    if error:
        return "failed"
    if (trial.last_result or {}).get("finished"):
        return "finished"
    begun = trial.status == TuneTrial.TERMINATED or (trial.last_result or {}).get("epoch")
    if unended is not None and trial_number(trial) in unended and begun:
        return "stopped"  # Tune marks what it stopped at the end as it marks what was pruned
    if trial.status == TuneTrial.TERMINATED:
        return "pruned"
    return "running" if trial.status == TuneTrial.RUNNING else "waiting"


def write_table(path: str, table: pd.DataFrame) -> None:
    """Write the CSV in one step, so that a reader or a kill never meets half of it."""
    store.write(path, table.to_csv(index=False).encode())


def best_row(table: pd.DataFrame) -> pd.Series | None:
    """The trial to make the bundle of: highest validation accuracy, then lowest validation loss, then the earliest.

    None where no trial has a score. Test rows have no say in it.
    """
    scored = table[table[SCORE].notna() & (table["status"] != "failed")]
    if scored.empty:
        return None
    ranked = scored.sort_values([SCORE, TIEBREAK, NUMBER], ascending=[False, True, True])
    return ranked.iloc[0]


def commonest_error(table: pd.DataFrame) -> str:
    """The error that most trials ended with, and how many did; "" where none failed."""
    errors = [str(e) for e in table.loc[table["status"] == "failed", "error"]]
    if not errors:
        return ""
    text, count = Counter(errors).most_common(1)[0]
    return f"{text} ({count} of {counted(len(table), 'trial')})"
