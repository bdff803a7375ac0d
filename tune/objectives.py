"""What a search looks for, one number or several, and how one of its trials is picked."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd


@dataclass(frozen=True)
class Objective:
    """A number that a trial reports. `column` is its name in trials.csv and `metric` its key in a trial's report."""

    name: str
    metric: str
    column: str
    mode: Literal["max", "min"]
    unit: str
    worst: float
    """What a trial that could not be trained is told to have reached."""


# Validation accuracy is that of the epoch whose weights are kept, which is the one with the lowest validation loss: a
# trial's last report carries the score of what it would put into the bundle.
ACCURACY = Objective("accuracy", "best_validation_accuracy", "validation_accuracy", "max", "", 0.0)
_ALL = (
    ACCURACY,
    Objective("latency", "latency_ms", "latency_ms", "min", "ms", 1e9),  # for one image, on the trial's CPU threads
    Objective("size", "size_mb", "size_mb", "min", "MB", 1e9),  # of the weights; MB are 10^6 bytes
    Objective("cost", "cost_s", "cost_s", "min", "s", 1e9),  # CPU-seconds of training, on GPUs GPU-seconds
)
OBJECTIVES = {objective.name: objective for objective in _ALL}
# Those that follow from the network alone, and are measured before it is trained.
MEASURED = ("latency", "size")

# Factors to the objective's own unit.
_UNITS = {
    "accuracy": {"": 1.0, "%": 0.01},
    "latency": {"": 1.0, "ms": 1.0, "s": 1000.0},
    "size": {"": 1.0, "mb": 1.0, "kb": 0.001, "gb": 1000.0},
    "cost": {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0},
}
_LIMIT = re.compile(r"([a-z]+) *(<=|>=|<|>) *(\d+\.?\d*|\.\d+) *([a-z%]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """What a picked trial must keep to, such as latency < 20 ms."""

    objective: Objective
    sign: str
    value: float

    def holds(self, value: float) -> bool:
        """Whether a trial with this value may be picked; one without a value may not."""
        if math.isnan(value):
            return False
        if self.sign[0] == "<":
            return value <= self.value if self.sign == "<=" else value < self.value
        return value >= self.value if self.sign == ">=" else value > self.value

    def excess(self, value: float) -> float:
        """How far off a value is, relative to the limit; 0 where it holds and infinity where there is none."""
        if self.holds(value):
            return 0.0
        return math.inf if math.isnan(value) else abs(value - self.value) / max(abs(self.value), 1e-9)

    def __str__(self) -> str:
        return f"{self.objective.name} {self.sign} {self.value:g}{' ' if self.objective.unit else ''}" + (
            self.objective.unit
        )


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """ "latency,accuracy" -> the objectives, accuracy first. ValueError says what may be written."""
    names = [name.strip().lower() for name in text.split(",")]
    unknown = [name for name in names if name not in OBJECTIVES]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"objective must name some of {', '.join(OBJECTIVES)}, each once, got {text!r}")
    if ACCURACY.name not in names:
        raise ValueError(f"objective must have accuracy in it, got {text!r}: the cheapest network only guesses")
    return tuple(objective for objective in _ALL if objective.name in names)


def parse_pick(text: str) -> tuple[Limit, ...]:
    """ "latency<20ms, size<=8MB" -> limits, all of which must hold; "" -> none. ValueError says what may be written.

    It is matched against a pattern and never evaluated.
    """
    return tuple(_limit(part.strip(), text) for part in re.split(r",| and ", text)) if text.strip() else ()


def _limit(part: str, text: str) -> Limit:
    match = _LIMIT.fullmatch(part)
    if not match or match[1].lower() not in OBJECTIVES:
        raise ValueError(
            f"pick must be like 'latency<20ms' or 'size<=8MB, accuracy>0.8' with {', '.join(OBJECTIVES)}, got {text!r}"
        )
    name, units = match[1].lower(), _UNITS[match[1].lower()]
    if match[4].lower() not in units:
        raise ValueError(f"pick: {name} is given in {', '.join(u for u in units if u) or 'no unit'}, got {match[4]!r}")
    value = float(match[3]) * units[match[4].lower()]
    if name == ACCURACY.name and value > 1:
        raise ValueError(f"pick: accuracy lies in 0..1, or is given in %, got {match[3]}")
    return Limit(OBJECTIVES[name], match[2], value)


def pareto(table: pd.DataFrame, objectives: tuple[Objective, ...]) -> list[int]:
    """Numbers of the scored trials that no other beats in one objective without losing in another, best accuracy
    first. The table is that of `tune.trials.trial_table`."""
    scored = table.dropna(subset=[objective.column for objective in objectives])
    signs = [1.0 if objective.mode == "max" else -1.0 for objective in objectives]
    points = {
        int(row["trial"]): [sign * float(row[o.column]) for sign, o in zip(signs, objectives, strict=True)]
        for _, row in scored.iterrows()
    }
    front = [n for n, point in points.items() if not any(_beats(other, point) for other in points.values())]
    accuracy = scored.set_index("trial")[ACCURACY.column]
    return sorted(front, key=lambda number: (-float(accuracy[number]), number))


def _beats(one: list[float], other: list[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and one != other


def picked(table: pd.DataFrame, limits: tuple[Limit, ...]) -> tuple[pd.DataFrame, bool]:
    """The trials that keep to all limits, and True; or the one that comes nearest to them, and False."""
    if not limits or table.empty:
        return table, True
    off = table.apply(lambda row: sum(limit.excess(_number(row[limit.objective.column])) for limit in limits), axis=1)
    keeps = table.apply(lambda row: all(limit.holds(_number(row[limit.objective.column])) for limit in limits), axis=1)
    if keeps.any():
        return table[keeps], True
    return table.loc[[off.idxmin()]], False


def _number(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)
