"""What a search space costs: the bird story's own against the default, the small network at 64 pixels.

    python benchmarks/space.py
    python benchmarks/space.py --data labels.csv --group-by image

For each seed both spaces are searched without pruning, from the same split and the same first trial (the defaults);
the doctor counts the trials that collapsed. `gain` is the validation accuracy of the best trial minus that of the
defaults, and so flattered by having been chosen; `test gain` is the same difference on the test images, which chose
nothing. The last line is one JSON object: means by space, and all searches.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import tyro

from data.collection import SAMPLE_SIZE, DataConfig, load_collection
from models.processes import prepare_environment
from models.training import TrainConfig
from tune.space import SpaceName

SPACES: tuple[SpaceName, ...] = ("story", "default")


@dataclass(frozen=True)
class SpaceConfig:
    """What is searched."""

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    trials: int = 10
    """Trials of each search."""
    seeds: int = 5
    """How many seeds: each is a split, first weights, and the sampler's draws."""
    max_concurrent: int = 1
    """Trials at one time; more than 1 makes the draws depend on which trial ends first."""


def search(config: SpaceConfig, space: SpaceName, seed: int) -> dict[str, Any]:
    """One search, and what the doctor says of it."""
    from tune import runs
    from tune.doctor import examination
    from tune.doctor.facts import facts_of
    from tune.settings import SearchConfig

    data = replace(config.data.absolute(), split_seed=seed, image_size=config.data.image_size or SAMPLE_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        settings = SearchConfig(
            data=data,
            train=replace(config.train, seed=seed),
            space=space,
            trials=config.trials,
            prune="off",
            max_concurrent=config.max_concurrent,
            out=f"{folder}/run",
        )
        runs.search(settings)
        table = pd.read_csv(Path(folder, "run", "trials.csv"))
        report = json.loads(Path(folder, "run", "report.json").read_text())
    facts = facts_of(settings, load_collection(data), table)
    best, default = (report["search"][f"{which}_validation_accuracy"] for which in ("best", "default"))
    gained = report["search"]["gain"]
    return {
        "space": space,
        "seed": seed,
        "collapsed": int(facts.collapsed.sum()),
        "trials": len(facts.scored),
        "best": best,
        "default": default,
        "gain": best - default,
        "test": report["test"]["accuracy"],
        "test_gain": gained["difference"] if gained else 0.0,
        "majority": facts.majority,
        "before": [finding.rule for finding in examination.before(facts)],
        "after": [finding.rule for finding in examination.after(facts)],
        "rates_of_collapsed": sorted(float(rate) for rate in facts.scored.loc[facts.collapsed, "learning_rate"]),
        "table": json.loads(table.to_json(orient="records")),
    }


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    collapsed = sum(row["collapsed"] for row in rows) / sum(row["trials"] for row in rows)
    return {
        "collapsed_share": collapsed,
        **{name: mean(row[name] for row in rows) for name in ("best", "default", "gain", "test", "test_gain")},
    }


def main() -> int:
    prepare_environment()
    config = tyro.cli(SpaceConfig, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    rows = []
    for seed in range(config.seeds):
        for space in SPACES:
            rows.append(search(config, space, seed))
            print(f"so far {json.dumps(rows[-1])}", flush=True)
    print("\nspace    seed  collapsed   best  default  gain    test   test gain  doctor")
    for row in sorted(rows, key=lambda row: (SPACES.index(row["space"]), row["seed"])):
        print(
            f"{row['space']:<8} {row['seed']:>4}  {row['collapsed']:>2} of {row['trials']:<3}  {row['best']:.3f}  "
            f"{row['default']:.3f}  {row['gain']:+.3f}  {row['test']:.3f}  {row['test_gain']:+.3f}     "
            f"{', '.join(row['before'] + row['after']) or '-'}"
        )
    summary = {space: means([row for row in rows if row["space"] == space]) for space in SPACES}
    for space, of in summary.items():
        scores = f"{of['best']:.3f}  {of['default']:.3f}  {of['gain']:+.3f}  {of['test']:.3f}  {of['test_gain']:+.3f}"
        print(f"{space:<8} mean  {of['collapsed_share']:>8.0%}   {scores}")
    searches = [{name: value for name, value in row.items() if name != "table"} for row in rows]
    print(json.dumps({"means": summary, "searches": searches}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
