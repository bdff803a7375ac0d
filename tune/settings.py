"""The settings of the two commands, `tune/search.py` and `tune/train.py`."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self, TypeVar

from data import store
from data.checks import at_least, one_of
from data.collection import DataConfig
from data.errors import UserError
from models.catalog import ModelConfig
from models.training import TrainConfig
from tune.budget import Budget
from tune.duel.duelists import DUEL_TRIALS, Contestant, parse_duel
from tune.objectives import MEASURED, Limit, Objective, parse_objectives, parse_pick
from tune.space import Extra, Space, SpaceName, make_space

# What --weights may say instead of a path.
WEIGHTS_BY_NAME = ("", "none", "torchvision")
# Settings that a resume takes from its own command line: they belong to where it runs and what it may cost, not to what
# is searched.
_OF_THE_RESUME = ("resume", "out", "cpus", "cache_dir", "pick", *(f.name for f in fields(Budget)))
# What a duel sets itself, or has no use for.
_NOT_IN_A_DUEL = ("space", "also", "widen", "warm_start", "objective", "pick", "optimizer", "schedule", "learning_rate")
_SAMPLE_TRIALS = 8
_TRIALS = 20

Saved = TypeVar("Saved")


@dataclass(frozen=True)
class CommandConfig:
    """What both commands share: images, network, training, and where the run lies and works."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    out: str = ""
    """Folder or s3:// address for the results; empty: a new folder below runs/."""
    threads: int = 1
    """CPU threads of each process that trains."""
    cpus: int = 0
    """CPUs of the Ray that is started on this machine; 0: all. On a running cluster it has no effect."""
    resume: bool = False
    """Go on with the run in --out, with its own settings. Reading a search back unpickles Ray's state: only resume
    what is yours."""

    def __post_init__(self) -> None:
        at_least(self, threads=1, cpus=0)
        if self.resume and not self.out:
            raise ValueError("--resume needs --out with the folder of the run that shall go on")

    def resumed_by(self, given: Self) -> Self:
        """These saved settings, with what belongs to the resume itself taken from its command line."""
        data = replace(self.data, cache_dir=given.data.cache_dir)
        return replace(self, data=data, out=given.out, cpus=given.cpus, resume=True)

    def absolute(self) -> Self:
        """The same with all paths absolute: a worker's working directory is not the user's."""
        weights = self.model.weights
        return replace(
            self,
            data=self.data.absolute(),
            model=replace(self.model, weights=weights if weights in WEIGHTS_BY_NAME else store.absolute(weights)),
            out=store.absolute(self.out) if self.out else "",
        )


@dataclass(frozen=True)
class SearchConfig(CommandConfig):
    """Search hyperparameters on Ray Tune with Optuna; the flags of model and training describe the first trial."""

    trials: int = 0
    """Trials to run, the default hyperparameters first; 0: 8 on the generated sample, 20 else. With --duel the learning
    rates that each optimiser tries; 0: 8."""
    space: SpaceName = "default"
    """What is searched: learning rate, epochs and dense units, by default in bounds that suit the model; "story" is a
    published bird search's own space (its learning rate lies on a reverse-logarithmic scale)."""
    also: tuple[Extra, ...] = ()
    """Further hyperparameters to search."""
    widen: bool = False
    """Where the best of the first two thirds of the trials lies at a bound of the space, the rest search beyond it;
    that may be more epochs than --epochs says."""
    warm_start: str = ""
    """An earlier run's folder, or its study.db: its best points, at most a quarter of the trials, are tried right
    after the defaults."""
    prune: Literal["asha", "off"] = "asha"
    """asha ends trials that are behind others after as many epochs (asynchronous successive halving); off lets all
    run. Trial 0, the defaults, is never pruned; nor is anything with several objectives."""
    objective: str = "accuracy"
    """What to search for, comma-separated: accuracy, and with it latency, size or cost."""
    duel: str = ""
    """Compare optimisers instead of searching: two or more of adam, adamw, sgd, comma-separated. Each searches a
    learning rate of its own, then trains with it from 5 seeds, the same for all; sgd once with a constant rate and once
    with Keras' time decay. No trial is pruned; all other flags hold for all alike."""
    pick: str = ""
    """Which trial becomes the bundle, as in "latency<20ms, accuracy>0.8": the most accurate of those that keep to it.
    Latency and size need to be objectives. It may be given anew with --resume."""
    max_concurrent: int = 0
    """Trials at one time; 0: as many as the CPUs (or GPUs) hold. Only 1 makes a search repeatable to the digit."""
    budget: Budget = field(default_factory=Budget)
    workers_per_trial: int = 1
    """Processes that train one trial together (Ray Train, data-parallel); each takes a GPU where there are any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, trials=0, max_concurrent=0, workers_per_trial=1)
        one_of(self, prune=("asha", "off"))
        parse_pick(self.pick)
        unmeasured = self.unmeasured() if not self.resume else ""  # the saved settings know what was measured
        if unmeasured:
            raise ValueError(f"pick names {unmeasured}, which is not measured; give --objective accuracy,{unmeasured}")
        self.search_space()
        if self.contestants:
            self._refuse_beside_a_duel()

    def _refuse_beside_a_duel(self) -> None:
        """A duel varies optimiser, schedule and learning rate, each as it must be, and compares by one number."""
        mine, training = {f.name: f.default for f in fields(self)}, {f.name: f.default for f in fields(self.train)}
        given = [name for name in _NOT_IN_A_DUEL if name in mine and getattr(self, name) != mine[name]]
        given += [n for n in _NOT_IN_A_DUEL if n in training and getattr(self.train, n) != training[n]]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(
                f"a duel sets optimiser, schedule and learning rate itself and compares by accuracy alone; leave out "
                f"{flags}, or leave out --duel"
            )

    def absolute(self) -> Self:
        prices, earlier = self.budget.prices, self.warm_start
        return replace(
            super().absolute(),
            budget=replace(self.budget, prices=store.absolute(prices) if prices else ""),
            warm_start=store.absolute(earlier) if earlier else "",
        )

    @property
    def workers(self) -> int:
        """Processes that train one network together."""
        return self.workers_per_trial

    def unmeasured(self) -> str:
        """What the pick names and no trial measures; "" where there is no such thing."""
        named = {limit.objective.name for limit in self.limits} & set(MEASURED)
        return min(named - {objective.name for objective in self.objectives}, default="")

    def resumed_by(self, given: Self) -> Self:
        if self.duel and given.pick:
            raise UserError("a duel compares by accuracy alone; leave out --pick")
        merged = replace(
            super().resumed_by(given),
            pick=given.pick or self.pick,
            budget=_given_over(given.budget, self.budget),
        )
        if name := merged.unmeasured():
            raise UserError(f"--pick names {name}, which this search did not measure; pick by what it did")
        return merged

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is searched for; accuracy is always the first."""
        return parse_objectives(self.objective)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What the trial must keep to that becomes the bundle."""
        return parse_pick(self.pick)

    @property
    def contestants(self) -> tuple[Contestant, ...]:
        """Who meets in the duel; none where this is a search."""
        return parse_duel(self.duel)

    @property
    def trials_each(self) -> int:
        """Learning rates that each contestant of a duel tries."""
        return self.trials or DUEL_TRIALS

    def search_space(self) -> Space:
        """The dimensions that the search varies."""
        train = self.train.resolved(frozen=self.model.frozen)
        defaults = {**asdict(self.model.resolved()), **asdict(train)}
        return make_space(self.space, defaults, backbone=self.model.model != "cnn", also=self.also)

    @property
    def trial_count(self) -> int:
        return self.trials or (_TRIALS if self.data.data else _SAMPLE_TRIALS)


@dataclass(frozen=True)
class TrainJobConfig(CommandConfig):
    """Train one model with given hyperparameters under Ray Train."""

    workers: int = 1
    """Processes that train together, data-parallel; each takes a GPU where there are any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, workers=1)


def _given_over(given: Budget, saved: Budget) -> Budget:
    """The saved budget with what the command line says anew: all that is not at its default."""
    default = Budget()
    named = {f.name: getattr(given, f.name) for f in fields(Budget)}
    return replace(saved, **{name: value for name, value in named.items() if value != getattr(default, name)})


def from_dict(kind: type[Saved], saved: dict[str, Any]) -> Saved:
    """The settings that `dataclasses.asdict` was applied to, after a way through JSON."""
    values: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name not in saved:
            continue  # written by an older version: the default holds
        value = saved[f.name]
        factory: Any = f.default_factory  # a class, for a field that is a configuration itself
        if isinstance(factory, type) and is_dataclass(factory) and isinstance(value, dict):
            value = from_dict(factory, value)
        values[f.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def changed_flags(given: Any, saved: Any) -> list[str]:
    """Flags given on the command line (that is, not at their default) which differ from the saved settings."""
    changed: list[str] = []
    for f in fields(given):
        mine, theirs = getattr(given, f.name), getattr(saved, f.name)
        if is_dataclass(mine):
            changed += changed_flags(mine, theirs)
            continue
        default = f.default
        if mine != default and mine != theirs and f.name not in _OF_THE_RESUME:
            changed.append(f"--{f.name.replace('_', '-')} (was {theirs})")
    return changed
