"""What a trial costs beside its training: trials of no work, in our search and in Ray Tune as it comes.

    python benchmarks/trial_overhead.py

Ours is `tune.searching.run_search` whole (study on disk, table, checkpoints, saved state, gauges, meter) with networks
that learn nothing, one epoch each. Stock is a function trainable with one report, OptunaSearch and
nothing else. Each count of trials is a process of its own; the slope between two counts leaves the start of Ray out,
which is printed apart. CPU seconds are those of the process and all that it starts. The last line is one JSON object:
`seconds_per_trial` (ours, wall, median of the rounds) and `cpu_ratio_to_stock` (stock's slope over ours).
"""

import dataclasses
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from proctree import timed

from models.processes import prepare_environment

CPUS = 2


@dataclass(frozen=True)
class OverheadConfig:
    """What is measured."""

    rounds: int = 3
    """Rounds of all four measurements, alternating."""
    few: int = 20
    """Trials of our shorter search."""
    many: int = 60
    """Trials of our longer search."""
    stock_few: int = 4
    """Trials of the shorter stock search, whose trials cost seconds."""
    stock_many: int = 12
    """Trials of the longer one."""
    epochs: int = 1
    """Reports of each trial. Each costs something in its own right: a checkpoint, a row of the study, the table."""
    child: Literal["", "ours", "stock"] = ""
    """Used by the script itself: run this kind of search, of `few` trials, and nothing else."""


def ours(trials: int, epochs: int, folder: str) -> None:
    """Our whole search, with networks that learn nothing."""
    from models.catalog import ModelConfig
    from models.records import EpochScores
    from models.training import ALONE, TrainConfig, World
    from tune.outputs import RunFolder
    from tune.plan import plan_of
    from tune.searching import run_search
    from tune.session import start_ray
    from tune.settings import SearchConfig
    from tune.trial import Job

    blank = dict.fromkeys((field.name for field in dataclasses.fields(EpochScores)), 0.5)

    class Idle:
        """A training run in which nothing happens."""

        def __init__(self) -> None:
            self.scores: list[EpochScores] = []
            self.world = ALONE

        @property
        def finished(self) -> bool:
            return len(self.scores) == epochs

        def run_epoch(self) -> None:
            self.scores.append(EpochScores(**{**blank, "epoch": len(self.scores) + 1}))

        def save(self, folder: str) -> None:
            Path(folder, "checkpoint.pt").write_bytes(b"nothing")

    class IdleJob(Job):
        def start(self, world: World = ALONE) -> Any:
            return Idle()

    config = SearchConfig(trials=trials, prune="off", out=folder)
    job = IdleJob(ModelConfig(), TrainConfig(), collection=None)  # type: ignore[arg-type]
    session = start_ray(cpus=CPUS)
    table = run_search(config, plan_of(config), job, RunFolder(folder, folder), session).table
    assert list(table["status"]) == ["finished"] * trials
    assert set(table["epochs_run"]) == {epochs}


def stock(trials: int, epochs: int, folder: str) -> None:
    """Ray Tune as its own guide shows it: a function that reports, an Optuna search, everything else as it comes."""
    import ray
    import ray.tune
    import ray.tune.search.optuna

    def trial(_: dict[str, Any]) -> None:
        for _epoch in range(epochs):
            ray.tune.report({"accuracy": 0.5})

    ray.init(num_cpus=CPUS, log_to_driver=False)
    space = {"learning_rate": ray.tune.loguniform(1e-4, 1e-2), "dense_units": ray.tune.randint(8, 128)}
    results = ray.tune.Tuner(
        trial,
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric="accuracy", mode="max", num_samples=trials, search_alg=ray.tune.search.optuna.OptunaSearch()
        ),
        run_config=ray.tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()
    assert len(results) == trials
    assert not results.errors


def measure(kind: str, trials: int, epochs: int) -> tuple[float, float]:
    """Wall and CPU seconds of one search in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, "--few", str(trials), "--epochs", str(epochs)]
    wall, cpu = timed(command)
    print(f"{kind:<6} {trials:>3} trials  {wall:6.1f} s wall  {cpu:6.1f} s CPU", flush=True)
    return wall, cpu


def main() -> int:
    config = tyro.cli(OverheadConfig, description=__doc__)
    if config.child:
        if config.child == "ours":
            prepare_environment()
        with tempfile.TemporaryDirectory() as folder:
            {"ours": ours, "stock": stock}[config.child](config.few, config.epochs, folder)
        return 0
    plan = [("ours", config.few), ("ours", config.many), ("stock", config.stock_few), ("stock", config.stock_many)]
    rounds = [{step: measure(*step, config.epochs) for step in plan} for _ in range(config.rounds)]
    slopes: dict[str, list[tuple[float, float]]] = {"ours": [], "stock": []}
    for measured in rounds:
        for kind, few, many in (
            ("ours", config.few, config.many),
            ("stock", config.stock_few, config.stock_many),
        ):
            pairs = zip(measured[kind, few], measured[kind, many], strict=True)
            wall, cpu = ((long - short) / (many - few) for short, long in pairs)
            slopes[kind].append((wall, cpu))
    median = {
        (kind, what): statistics.median(values[place] for values in slopes[kind])
        for kind in slopes
        for place, what in enumerate(("wall", "cpu"))
    }
    fixed = statistics.median(m["ours", config.few][0] for m in rounds) - config.few * median["ours", "wall"]
    print("\n            wall s/trial  CPU s/trial")
    for kind in slopes:
        print(f"{kind:<12}{median[kind, 'wall']:>12.3f}{median[kind, 'cpu']:>13.3f}")
    print(f"start and end of our search apart: {fixed:.1f} s")
    answer = {
        "seconds_per_trial": median["ours", "wall"],
        "cpu_ratio_to_stock": median["stock", "cpu"] / median["ours", "cpu"],
        "cpu_seconds_per_trial": median["ours", "cpu"],
        "fixed_seconds": fixed,
        "slopes": slopes,
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
