"""Who meets in a duel of optimisers, and what its two phases draw: learning rates first, then seeds."""

from dataclasses import dataclass
from typing import Any, Literal

import optuna

from tune.space import NUMBER, Choice, Float, Int, Space, Values

CONTESTANT = "contestant"
SEEDS = 5
"""How many seeds each contestant trains from once its learning rate is chosen."""
DUEL_TRIALS = 8
"""Learning rates that each contestant tries unless --trials says otherwise."""

# As many of a contestant's first rates lie evenly on the log scale; random ones would give some contestants luck.
_EVEN = 8


@dataclass(frozen=True)
class Contestant:
    """An optimiser with its schedule, and the bounds of the learning rates that it tries."""

    name: str
    optimizer: Literal["adam", "adamw", "sgd"]
    schedule: Literal["constant", "keras-time"]
    low: float
    high: float

    def values(self, learning_rate: float, seed: int) -> Values:
        """What its trial sets; `CONTESTANT` is no hyperparameter and only names the row."""
        settings = {"optimizer": self.optimizer, "schedule": self.schedule, "learning_rate": learning_rate}
        return {CONTESTANT: self.name, "seed": seed, **settings}

    @property
    def dimension(self) -> Float:
        return Float(f"learning_rate_{self.name}", self.low, self.high, "log")

    def rates(self, count: int) -> list[float]:
        """So many rates, each in the middle of an equal part of the bounds on the log scale."""
        return [self.low * (self.high / self.low) ** ((i + 0.5) / count) for i in range(count)]


# Four decades each, so that as many trials lie equally close. Where they lie differs, because what the optimisers make
# of a rate does: Adam's step is about the rate itself, and time decay divides it by 11 after a hundred batches.
_CONTESTANTS: dict[str, tuple[Contestant, ...]] = {
    "adam": (Contestant("adam", "adam", "constant", 1e-5, 1e-1),),
    "adamw": (Contestant("adamw", "adamw", "constant", 1e-5, 1e-1),),
    "sgd": (
        Contestant("sgd", "sgd", "constant", 1e-4, 1.0),
        Contestant("sgd-keras-time", "sgd", "keras-time", 1e-3, 10.0),
    ),
}


def parse_duel(text: str) -> tuple[Contestant, ...]:
    """ "adam,sgd" -> the contestants in that order, "" -> none. ValueError says what may be written.

    sgd gives two: with a constant learning rate, and with Keras' time decay, which changes it more than any optimiser.
    """
    if not text.strip():
        return ()
    names = [name.strip().lower() for name in text.split(",")]
    if any(name not in _CONTESTANTS for name in names) or len(set(names)) < len(names) or len(names) < 2:
        raise ValueError(f"duel must name two or more of {', '.join(_CONTESTANTS)}, each once, got {text!r}")
    return tuple(contestant for name in names for contestant in _CONTESTANTS[name])


@dataclass(frozen=True)
class Rates(Space):
    """The first phase: trial n is contestant n modulo their number, each with a dimension of its own, all with the same
    seed. Optuna's sampler looks at a parameter by itself, so that each contestant's search is its own."""

    contestants: tuple[Contestant, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, contestants: tuple[Contestant, ...], seed: int) -> "Rates":
        dimensions = tuple(contestant.dimension for contestant in contestants)
        return cls(dimensions, {d.name: d.low for d in dimensions}, contestants, seed)

    @property
    def names(self) -> tuple[str, ...]:
        return _COLUMNS

    def __call__(self, trial: optuna.Trial) -> Values:
        mine = self.contestants[trial.number % len(self.contestants)]
        return {NUMBER: trial.number, **mine.values(mine.dimension.suggest(trial), self.seed)}

    def points(self, trials: int) -> tuple[Values, ...]:
        """The first proposals where each contestant has so many trials: at the same places of their scales."""
        count = min(trials, _EVEN)
        columns = [[{c.dimension.parameter: rate} for rate in c.rates(count)] for c in self.contestants]
        return tuple(point for row in zip(*columns, strict=True) for point in row)


@dataclass(frozen=True)
class Seeds(Space):
    """The second phase: each contestant with its best rate from each seed. All points are given, none is drawn."""

    contestants: tuple[Contestant, ...] = ()
    rates: tuple[float, ...] = ()

    @classmethod
    def of(cls, rates: dict[Contestant, float], seeds: tuple[int, ...]) -> "Seeds":
        """`seeds` are consecutive and at least 1."""
        names = Choice(CONTESTANT, tuple(contestant.name for contestant in rates))
        first = {CONTESTANT: names.values[0], "seed": seeds[0]}
        return cls((names, Int("seed", seeds[0], seeds[-1])), first, tuple(rates), tuple(rates.values()))

    @property
    def names(self) -> tuple[str, ...]:
        return _COLUMNS

    def __call__(self, trial: optuna.Trial) -> Values:
        drawn: dict[str, Any] = super().__call__(trial)
        place = [contestant.name for contestant in self.contestants].index(drawn[CONTESTANT])
        return {NUMBER: trial.number, **self.contestants[place].values(self.rates[place], drawn["seed"])}

    def points(self) -> tuple[Values, ...]:
        _, seeds = self.dimensions
        assert isinstance(seeds, Int)
        return tuple(
            {CONTESTANT: contestant.name, "seed": seed}
            for seed in range(seeds.low, seeds.high + 1)
            for contestant in self.contestants
        )


_COLUMNS = (CONTESTANT, "seed", "learning_rate")
