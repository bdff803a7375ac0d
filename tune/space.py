"""What a search varies: named dimensions, and where each lies."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import optuna

SpaceName = Literal["default", "story"]
Extra = Literal["optimizer", "dropout", "weight_decay", "augment"]
Values = dict[str, Any]

AT_BOUND = 0.05
"""A value lies at a bound when it is within this share of the range, on the dimension's own scale."""

# How far a dimension can be widened at all: a learning rate of 1 or more trains nothing here, dropout of 1 drops all.
_LIMITS = {"learning_rate": (1e-8, 0.999), "dropout": (0.0, 0.95), "weight_decay": (1e-8, 1.0)}

# The key under which a trial's number in the Optuna study travels with its hyperparameters: Tune's own ids are random.
NUMBER = "trial"


@dataclass(frozen=True)
class Float:
    """A real dimension in [low, high].

    `scale` "log" samples evenly in log(x). "reverse-log" samples evenly in log(1 - x), as SageMaker's
    ReverseLogarithmic scaling does: it is meant for values close to 1 and needs 0 <= low < high < 1.
    """

    name: str
    low: float
    high: float
    scale: Literal["linear", "log", "reverse-log"] = "linear"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"{self.name}: the bounds must rise, got {self.low} to {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"{self.name}: a log scale needs a lower bound > 0, got {self.low}")
        if self.scale == "reverse-log" and not (self.low >= 0 and self.high < 1):
            raise ValueError(f"{self.name}: a reverse-log scale needs bounds in [0, 1), got {self.low} to {self.high}")

    @property
    def parameter(self) -> str:
        """Name of the parameter in the Optuna study; a transformed one says so."""
        return f"{self.name}_reverse_log" if self.scale == "reverse-log" else self.name

    def to_parameter(self, value: float) -> float:
        return -math.log1p(-value) if self.scale == "reverse-log" else value

    def from_parameter(self, parameter: float) -> float:
        return -math.expm1(-parameter) if self.scale == "reverse-log" else parameter

    def suggest(self, trial: optuna.Trial) -> float:
        low, high = self.to_parameter(self.low), self.to_parameter(self.high)
        return self.from_parameter(trial.suggest_float(self.parameter, low, high, log=self.scale == "log"))

    def holds(self, value: Any) -> bool:
        # A value that went through the scale and back may miss its bound by a rounding.
        close = math.isclose(value, self.low, rel_tol=1e-9) or math.isclose(value, self.high, rel_tol=1e-9)
        return bool(self.low <= value <= self.high) or close

    def position(self, value: float) -> float:
        """Where a value lies on the dimension's own scale: 0 at the lower bound, 1 at the upper."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / (high - low)

    def widened(self, value: float) -> "Float":
        """With half the range more, on its own scale, beyond the bound that `value` lies at; itself where at none."""
        least, most = _LIMITS.get(self.name, (-math.inf, math.inf))
        low, high, place = self._scaled(self.low), self._scaled(self.high), self.position(value)
        half = (high - low) / 2
        if place <= AT_BOUND:
            return replace(self, low=max(least, self._unscaled(low - half)))
        if place >= 1 - AT_BOUND:
            return replace(self, high=min(most, self._unscaled(high + half)))
        return self

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.scale == "log" else self.to_parameter(value)

    def _unscaled(self, scaled: float) -> float:
        return math.exp(scaled) if self.scale == "log" else self.from_parameter(scaled)

    def describe(self) -> str:
        return f"{self.name} {self.low:g}-{self.high:g}, {self.scale} scale"


@dataclass(frozen=True)
class Int:
    """A whole-number dimension in [low, high], both included; `log` samples evenly in log(x)."""

    name: str
    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"{self.name}: the bounds must rise from at least 1, got {self.low} to {self.high}")

    @property
    def parameter(self) -> str:
        return self.name

    def to_parameter(self, value: int) -> int:
        return value

    def from_parameter(self, parameter: int) -> int:
        return parameter

    def suggest(self, trial: optuna.Trial) -> int:
        return trial.suggest_int(self.parameter, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

    def position(self, value: int) -> float:
        """As `Float.position`; 0.5 where there is one value only."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / (high - low) if high > low else 0.5

    def widened(self, value: int) -> "Int":
        """As `Float.widened`; never below 1."""
        low, high, place = self._scaled(self.low), self._scaled(self.high), self.position(value)
        half = (high - low) / 2
        if place <= AT_BOUND:
            return replace(self, low=max(1, round(self._unscaled(low - half))))
        if place >= 1 - AT_BOUND:
            return replace(self, high=math.ceil(self._unscaled(high + half)))
        return self

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def _unscaled(self, scaled: float) -> float:
        return math.exp(scaled) if self.log else scaled

    def describe(self) -> str:
        return f"{self.name} {self.low}-{self.high}{', log scale' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """A dimension with named values."""

    name: str
    values: tuple[str, ...]

    @property
    def parameter(self) -> str:
        return self.name

    def to_parameter(self, value: str) -> str:
        return value

    def from_parameter(self, parameter: str) -> str:
        return parameter

    def suggest(self, trial: optuna.Trial) -> str:
        drawn = trial.suggest_categorical(self.parameter, list(self.values))
        return str(drawn)

    def holds(self, value: Any) -> bool:
        return value in self.values

    def position(self, value: str) -> float:
        """Named values have no order, so none lies at a bound."""
        return 0.5

    def widened(self, value: str) -> "Choice":
        return self

    def describe(self) -> str:
        return f"{self.name} {'|'.join(self.values)}"


Dimension = Float | Int | Choice

_LEAST_DECAY = 1e-6
_EXTRAS: dict[str, Dimension] = {
    "optimizer": Choice("optimizer", ("adam", "adamw", "sgd")),
    "dropout": Float("dropout", 0.0, 0.6),
    "weight_decay": Float("weight_decay", _LEAST_DECAY, 1e-1, "log"),
    "augment": Choice("augment", ("off", "light", "strong")),
}


@dataclass(frozen=True)
class Space:
    """The dimensions of a search. `defaults` are the hyperparameters of the first trial, one for each dimension."""

    dimensions: tuple[Dimension, ...]
    defaults: Values

    def __post_init__(self) -> None:
        for dimension in self.dimensions:
            value = self.defaults[dimension.name]
            if not dimension.holds(value):
                raise ValueError(
                    f"{dimension.name} is {value} in the first trial, outside the search space "
                    f"({dimension.describe()}); give a value inside it or another --space"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The hyperparameters that are searched."""
        return tuple(dimension.name for dimension in self.dimensions)

    def first_point(self) -> Values:
        """The defaults as Optuna parameters, for `points_to_evaluate`."""
        return {d.parameter: d.to_parameter(self.defaults[d.name]) for d in self.dimensions}

    def __call__(self, trial: optuna.Trial) -> Values:
        """Define-by-run for OptunaSearch: plain hyperparameters by their own names, and the number of the trial.

        A method and not a closure, because OptunaSearch pickles its space with the standard pickle.
        """
        return {NUMBER: trial.number, **{dimension.name: dimension.suggest(trial) for dimension in self.dimensions}}

    def widened(self, best: Values) -> "Space":
        """With the dimensions widened at whose bounds the hyperparameters `best` lie; itself where there are none."""
        return replace(self, dimensions=tuple(d.widened(best[d.name]) for d in self.dimensions))

    def describe(self) -> str:
        return "; ".join(dimension.describe() for dimension in self.dimensions)


def make_space(name: SpaceName, defaults: Values, *, backbone: bool, also: tuple[Extra, ...] = ()) -> Space:
    """The search space called `name` around the first trial's `defaults`.

    `defaults` holds every hyperparameter; `defaults["epochs"]` is the most that the default space gives a trial.
    `backbone` is whether the model has a pretrained base, whose head wants more units and gentler rates than the CNN.
    "story" is the bird story's own: epochs 5-20, learning rate 0.001-0.1 on the reverse-log scale, dense 10-50.
    """
    if name == "story":
        chosen: tuple[Dimension, ...] = (
            Float("learning_rate", 0.001, 0.1, "reverse-log"),
            Int("epochs", 5, 20),
            Int("dense_units", 10, 50),
        )
    else:
        most = int(defaults["epochs"])
        chosen = (
            Float("learning_rate", 1e-4, 1e-2, "log"),
            Int("epochs", max(1, most // 3), most),
            Int("dense_units", 64, 1024, log=True) if backbone else Int("dense_units", 8, 128, log=True),
        )
    chosen += tuple(_EXTRAS[extra] for extra in dict.fromkeys(also))
    first = {d.name: defaults[d.name] for d in chosen}
    if first.get("weight_decay") == 0:  # a log scale has no zero; this little is as good as none
        first["weight_decay"] = _LEAST_DECAY
    return Space(chosen, first)
