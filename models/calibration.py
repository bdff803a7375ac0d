"""Probabilities that mean something: one temperature and one threshold, both from the validation images."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from models.catalog import Classifier
from models.engine import EngineName
from models.inference import logits_of_rows, softmax
from models.metrics import log_loss
from models.training import TrainingData

Array = np.ndarray[Any, np.dtype[Any]]

# ln T is taken as normal around 0 with this deviation before any image is seen. Without it a few validation images that
# the network gets all right drive T to 0 and every probability to 1, a claim that a few images cannot carry; a hundred
# images outweigh it.
_PRIOR_DEVIATION = 0.5
_COLDEST, _HOTTEST = 0.05, 20.0

CONFIDENT_ACCURACY = 0.95
"""What "confident" promises on the validation images."""
CONFIDENT_LEAST = 20
"""With fewer images above a threshold its accuracy says too little (20 of 20 right is 84-100 % by Wilson)."""

NONE_CONFIDENT: Final[dict[str, float | None]] = {"confident": None}
"""The thresholds of a model of which nothing is promised."""

# A probability may differ by this much between a batch and a single image, and must not change sides for it.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Calibration:
    """What is written into the bundle beside the weights."""

    temperature: float
    thresholds: dict[str, float | None]


def calibrate(
    model: Classifier, data: TrainingData, device: str = "cpu", named: EngineName | None = None
) -> Calibration:
    """Temperature and thresholds of a trained model, from the validation rows of `data`, through the engine `named` or
    the fastest one: the one that will answer, since a threshold must not come between two engines."""
    rows, labels = data.validation.rows, data.validation.labels
    logits = logits_of_rows(model, data.images, rows, data.preprocess, device, named)
    temperature = fit_temperature(logits, labels)
    threshold = confident_threshold(softmax(logits, temperature), labels)
    return Calibration(temperature, {"confident": threshold})


def fit_temperature(logits: Array, labels: Array) -> float:
    """The most likely T in 0.05..20 for softmax(logits / T) (Guo et al. 2017, "On calibration of modern neural
    networks"), given a normal prior on ln T. `logits` (n, classes), `labels` (n,); 1 without images.

    Minimises n * (mean log loss) + (ln T)^2 / (2 * 0.5^2) on a grid of ln T, then on a finer one around its best.
    """
    if len(labels) == 0:
        return 1.0

    def cost(log_t: float) -> float:
        loss = log_loss(softmax(logits, float(np.exp(log_t))), labels)
        return len(labels) * loss + log_t**2 / (2 * _PRIOR_DEVIATION**2)

    low, high = float(np.log(_COLDEST)), float(np.log(_HOTTEST))
    for _ in range(3):
        grid = np.linspace(low, high, 61)
        best = int(np.argmin([cost(float(log_t)) for log_t in grid]))
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    return float(np.exp(grid[best]))


def confident_threshold(probabilities: Array, labels: Array) -> float | None:
    """The lowest top probability at or above which at least 95 % are right, 20 images or more being above it; None if
    there is none. `probabilities` (n, classes), `labels` (n,)."""
    top = probabilities.max(axis=1)
    order = np.argsort(-top, kind="stable")
    right = np.cumsum((probabilities.argmax(axis=1) == labels)[order])
    count = np.arange(1, len(labels) + 1)
    # A threshold takes in all images of equal probability: only the last of them is a place to cut.
    last = np.append(top[order][1:] < top[order][:-1], True) if len(labels) else np.zeros(0, bool)
    good = np.flatnonzero(last & (count >= CONFIDENT_LEAST) & (right >= CONFIDENT_ACCURACY * count))
    return max(0.0, float(top[order][good[-1]]) - _TOLERANCE) if len(good) else None
