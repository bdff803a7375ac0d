"""How much easier the generated sample looks when frames of one dive lie on both sides of the split.

    uv run benchmarks/sample_gap.py --seeds 0 1 2 3 4

For each sample seed the small network is trained on dives and tested on other dives (`new`), and trained and tested on
images of the same dives (`known`); each number is the mean over split seeds. `majority` is the accuracy of always
naming the label that is commoner in the test rows of `new`, averaged in the same way. The last
line is all of it as JSON.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from statistics import mean

import numpy as np
import torch

from data.collection import Collection, DataConfig, load_collection
from models.catalog import ModelConfig
from models.preprocess import Preprocess
from models.training import TrainConfig, TrainingData, TrainingRun


@dataclass(frozen=True)
class Gap:
    """Mean test accuracies for one sample seed."""

    new: float
    known: float
    majority: float


def accuracy(collection: Collection, epochs: int) -> tuple[float, float]:
    """(accuracy of the best epoch, majority rate) on the test rows of a collection."""
    preprocess = Preprocess.for_model("cnn", collection.resize)
    data = TrainingData(
        collection.images(), collection.subset("train"), collection.subset("validation"), collection.classes, preprocess
    )
    run = TrainingRun(ModelConfig(), TrainConfig(epochs=epochs), data)
    while not run.finished:
        run.run_epoch()
    model, test = run.best_model(), collection.subset("test")
    with torch.inference_mode():
        named = [
            model(preprocess.to_batch(np.array(collection.images()[rows]))).argmax(1).numpy()
            for rows in np.array_split(test.rows, 4)
        ]
    right = float(np.mean(np.concatenate(named) == test.labels))
    return right, float(np.bincount(test.labels).max() / len(test.labels))


def measure(sample_seed: int, new_splits: int, known_splits: int, epochs: int, cache_dir: str = "") -> Gap:
    """The gap for one sample seed, over this many splits by dive and by image."""

    def over(group_by: str, splits: int) -> list[tuple[float, float]]:
        return [
            accuracy(
                load_collection(
                    DataConfig(sample_seed=sample_seed, split_seed=seed, group_by=group_by, cache_dir=cache_dir)
                ),
                epochs,
            )
            for seed in range(splits)
        ]

    new = over("video", new_splits)
    return Gap(
        new=mean(right for right, _ in new),
        known=mean(right for right, _ in over("image", known_splits)),
        majority=mean(rate for _, rate in new),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="sample seeds")
    parser.add_argument("--new-splits", type=int, default=4, help="splits by dive, each with other test dives")
    parser.add_argument("--known-splits", type=int, default=2, help="splits by image")
    parser.add_argument("--epochs", type=int, default=12, help="most epochs of each training run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("seed   new  known  majority")
    gaps = []
    for seed in arguments.seeds:
        gap = measure(seed, arguments.new_splits, arguments.known_splits, arguments.epochs)
        gaps.append(gap)
        print(f"{seed:4} {gap.new:.3f}  {gap.known:.3f}     {gap.majority:.3f}", flush=True)
    whole = Gap(mean(gap.new for gap in gaps), mean(gap.known for gap in gaps), mean(gap.majority for gap in gaps))
    print(f"mean {whole.new:.3f}  {whole.known:.3f}     {whole.majority:.3f}")
    seeds = {str(seed): asdict(gap) for seed, gap in zip(arguments.seeds, gaps, strict=True)}
    print(json.dumps({"mean": asdict(whole), **seeds}))


if __name__ == "__main__":
    main()
