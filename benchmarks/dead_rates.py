"""From which learning rate on a network learns nothing: the source of the bounds that the search doctor warns about.

    python benchmarks/dead_rates.py
    python benchmarks/dead_rates.py --data labels.csv --group-by image --image-size 64
    python benchmarks/dead_rates.py --data labels.csv --model mobilenet_v2 --weights backbone.pth

Trains the network at each rate from several seeds and counts the runs that are dead: the accuracy on the training
images of the last epoch is not above always naming their commonest class (lower end of the 95 % interval), or the loss
left the numbers. The last line is one JSON object: the share of dead runs for each optimiser and rate.
"""

import json
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import tyro

from data.collection import DataConfig, load_collection
from data.errors import UserError
from models.catalog import ModelConfig
from models.metrics import wilson
from models.processes import prepare_environment
from models.training import TrainConfig, TrainingData, TrainingRun


@dataclass(frozen=True)
class RatesConfig:
    """What is trained, and how often."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1)
    """Learning rates, in rising order."""
    optimizers: tuple[str, ...] = ("adam", "sgd")
    seeds: int = 5
    """Runs at each rate, each from weights of its own."""
    epochs: int = 6


def died(config: RatesConfig, data: TrainingData, train: TrainConfig, cache_dir: str) -> tuple[bool, float]:
    """Whether one run ends dead, and the validation accuracy that it would be chosen by (0 where it diverged)."""
    run = TrainingRun(config.model, train, data, cache_dir=cache_dir)
    try:
        while not run.finished:
            run.run_epoch()
    except UserError:
        return True, 0.0
    n, last = len(data.train.labels), run.scores[-1]
    low, _ = wilson(round(last.training_accuracy * n), n)
    return low <= np.bincount(data.train.labels).max() / n, last.best_validation_accuracy


def main() -> int:
    prepare_environment()
    config = tyro.cli(RatesConfig, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    torch.set_num_threads(1)
    collection = load_collection(config.data)
    data, cache_dir = TrainingData.of(collection, config.model.model), collection.config.cache_dir
    shares: dict[str, dict[str, float]] = {}
    print("optimizer    rate   dead  best validation accuracies")
    for optimizer in config.optimizers:
        for rate in config.rates:
            base = TrainConfig(learning_rate=rate, epochs=config.epochs, patience=0)
            trains = [replace(base, optimizer=optimizer, seed=seed) for seed in range(config.seeds)]  # type: ignore[arg-type]
            ends = [died(config, data, train, cache_dir) for train in trains]
            dead = sum(end for end, _ in ends)
            print(f"{optimizer:<9} {rate:>7g} {dead:>2} of {len(ends)}  {[round(a, 3) for _, a in ends]}", flush=True)
            shares.setdefault(optimizer, {})[f"{rate:g}"] = dead / len(ends)
    print(json.dumps({"dead_share": shares}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
