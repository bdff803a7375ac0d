"""Our side of `search.py`: the training step alone and the input alone, each in a process of its own."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.collection import DataConfig, Subset, load_collection
from data.resizing import Resize
from models.catalog import ModelConfig
from models.preprocess import Preprocess
from models.training import TrainConfig, TrainingData, TrainingRun

CLASSES = 10


def step_rate(size: int, batches: int) -> float:
    """Images per CPU second of the training step alone, through the real loop, over a batch that is there already."""
    torch.set_num_threads(1)

    def data(count: int) -> Subset:
        names = tuple(map(str, range(count)))
        return Subset("train", np.arange(count), np.arange(count) % CLASSES, names, names)

    images = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), dtype=np.uint8)
    names = tuple(f"class-{number}" for number in range(CLASSES))
    pack = TrainingData(images, data(32), data(32), names, Preprocess.for_model("cnn", Resize(size)))
    with tempfile.TemporaryDirectory() as cache:
        learner = TrainingRun(ModelConfig(), TrainConfig(), pack, cache_dir=cache)._learner
    inputs = learner._source
    batch = inputs.training(np.arange(32), None, 1)

    class Prepared:
        """The same batch, whatever is asked for."""

        chunk = 32

        def training(self, rows: Any, draws: Any, epoch: int) -> torch.Tensor:
            return batch

        plain = inputs.plain

    learner._source = Prepared()
    learner.train(data(32 * 3), 1)
    start = time.process_time()
    learner.train(data(32 * batches), 2)
    return 32 * batches / (time.process_time() - start)


def input_rates(table: Path, size: int, count: int) -> dict[str, float]:
    """Images per CPU second: into the pack (once a collection), and out of it into batches of 32 (every epoch)."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        start = time.process_time()
        collection = load_collection(DataConfig(data=str(table), image_size=size, cache_dir=cache))
        packed = len(collection.images()) / (time.process_time() - start)
        images, preprocess = collection.images(), Preprocess.for_model("mobilenet_v2", collection.resize)
        rows = np.random.default_rng(0).permutation(min(count, len(images)))

        def once() -> None:
            for first in range(0, len(rows), 32):
                preprocess.to_batch(images[rows[first : first + 32]])

        once()
        start = time.process_time()
        once()
        return {"pack": packed, "batches": len(rows) / (time.process_time() - start)}


if __name__ == "__main__":
    what, *values = sys.argv[1:]
    if what == "step":
        print(json.dumps(step_rate(int(values[0]), int(values[1]))))
    else:
        print(json.dumps(input_rates(Path(values[0]), int(values[1]), int(values[2]))))
