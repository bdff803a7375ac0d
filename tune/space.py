"""What a search varies: named dimensions, and where each lies."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import optuna

SpaceName = Literal["default", "story"]
Extra = Literal["optimizer", "dropout", "weight_decay", "augment"]
Values = dict[str, Any]

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

    def suggest(self, trial: optuna.Trial) -> float:
        low, high = self.to_parameter(self.low), self.to_parameter(self.high)
        drawn = trial.suggest_float(self.parameter, low, high, log=self.scale == "log")
        return -math.expm1(-drawn) if self.scale == "reverse-log" else drawn

    def holds(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

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

    def suggest(self, trial: optuna.Trial) -> int:
        return trial.suggest_int(self.parameter, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

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

    def suggest(self, trial: optuna.Trial) -> str:
        drawn = trial.suggest_categorical(self.parameter, list(self.values))
        return str(drawn)

    def holds(self, value: Any) -> bool:
        return value in self.values

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
