"""Which training images make which batch, on which worker. No DataLoader: a permutation, cut up and sliced by rank."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import UserError
from models import seeds

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class World:
    """This worker's place among those that train one model together. size > 1: torch.distributed is initialised."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be >= 0 and < size, got rank {self.rank} of {self.size}")

    def part(self, count: int) -> slice:
        """This worker's share of `count` things: contiguous, sizes differ by one at most, earlier ranks the larger."""
        each, extra = divmod(count, self.size)
        start = self.rank * each + min(self.rank, extra)
        return slice(start, start + each + (self.rank < extra))


def epoch_order(labels: Indices, *, sampling: bool, seed: int, epoch: int) -> Indices:
    """Positions (n,) into `labels` for one epoch: every one once in random order, or, with `sampling`, n draws in which
    every class is equally likely. The same on every worker and after every resume."""
    generator = np.random.default_rng(seeds.derive(seed, seeds.ORDER, epoch))
    if not sampling:
        return generator.permutation(len(labels))
    counts = np.bincount(labels)
    chances = 1 / counts[labels]
    return generator.choice(len(labels), size=len(labels), p=chances / chances.sum())


def cut(order: Indices, batch_size: int, workers: int) -> list[Indices]:
    """Global batches of `batch_size`; the last one is shorter, or joins the one before it if it has less than two
    images for each worker (an empty worker would hang the others; BatchNorm can learn nothing from one image)."""
    if batch_size < 2 * workers or len(order) < 2 * workers:
        raise UserError(
            f"{workers} workers need at least {2 * workers} images a batch; got batch_size {batch_size} and "
            f"{len(order)} training images: use fewer workers or a larger batch"
        )
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) < 2 * workers:
        last = batches.pop()
        batches[-1] = np.concatenate((batches[-1], last))
    return batches


def class_weights(labels: Indices, classes: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Weight of each class (classes,), inverse to its count, with mean 1 over the images. 0 for a class without any."""
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    weights = np.zeros(classes, np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights
