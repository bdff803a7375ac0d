"""A search over a frozen backbone's head, against a linear probe on the same features and the same training rows.

    python benchmarks/linear_probe.py --data labels.csv --model mobilenet_v2 --weights backbone.pth --seeds 10

For each split seed the search chooses by validation and the probe (scikit-learn's logistic regression on standardised
features, its default C = 1) has nothing to choose; both are scored on the same test rows, which choose nothing. The
last line is one JSON object: mean test accuracies, `mean_difference` (ours - probe), and all seeds.
"""

import json
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from data.collection import DataConfig
from models.catalog import ModelConfig
from models.processes import prepare_environment
from models.training import TrainConfig
from tune.space import Extra


@dataclass(frozen=True)
class ProbeConfig:
    """What is compared."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    trials: int = 6
    """Trials of each search."""
    seeds: int = 10
    """How many split seeds."""
    first_seed: int = 0
    """The first of them."""
    also: tuple[Extra, ...] = ()
    """Further hyperparameters to search."""


def compare(config: ProbeConfig, split_seed: int) -> dict[str, float]:
    """Test accuracies of search and probe for one split."""
    from data.collection import load_collection
    from models.features import FrozenBase
    from models.preprocess import Preprocess
    from tune import runs
    from tune.settings import SearchConfig

    data = replace(config.data.absolute(), split_seed=split_seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        search = SearchConfig(
            data=data,
            model=config.model,
            train=config.train,
            trials=config.trials,
            also=config.also,
            out=f"{folder}/run",
        )
        runs.search(search)
        seconds = time.monotonic() - start
        report = json.loads(Path(folder, "run", "report.json").read_text())
    collection = load_collection(data)
    preprocess = Preprocess.for_model(config.model.model, collection.resize)
    features = FrozenBase(
        config.model, collection.images(), preprocess, cache_dir=collection.config.cache_dir
    ).features()
    train, test = collection.subset("train"), collection.subset("test")
    return {
        "split_seed": split_seed,
        "n": len(test.rows),
        "ours": report["test"]["accuracy"],
        "probe": probe_accuracy(features[train.rows], train.labels, features[test.rows], test.labels),
        "validation": report["validation"]["accuracy"],
        "default_validation": report["search"]["default_validation_accuracy"],
        "majority": report["test"]["majority_rate"],
        "seconds": seconds,
    }


def probe_accuracy(train_x: object, train_y: object, test_x: object, test_y: object) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train_x, train_y)
    return float(probe.score(test_x, test_y))


def main() -> int:
    prepare_environment()
    config = tyro.cli(ProbeConfig, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    rows = []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        rows.append(compare(config, seed))
        print(f"so far {json.dumps(rows[-1])}", flush=True)
    print("\nsplit seed   n    ours  probe  majority")
    for row in rows:
        print(f"{row['split_seed']:>10} {row['n']:>4}  {row['ours']:.3f}  {row['probe']:.3f}     {row['majority']:.3f}")
    ours, probe = (sum(row[name] for row in rows) / len(rows) for name in ("ours", "probe"))
    print(f"{'mean':>10}       {ours:.3f}  {probe:.3f}")
    print(json.dumps({"ours": ours, "probe": probe, "mean_difference": ours - probe, "seeds": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
