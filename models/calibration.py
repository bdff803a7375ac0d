"""Probabilities that mean something: one temperature and one threshold, both from the validation images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.catalog import Classifier
from models.inference import logits_of_rows, softmax
from models.training import TrainingData

Array = np.ndarray[Any, np.dtype[Any]]

# Bounds of the temperature. A few validation images that the network gets all right would otherwise drive it to 0 and
# every probability to 1, which is a claim that a few images cannot carry.
_COLDEST, _HOTTEST = 0.25, 20.0

CONFIDENT_ACCURACY = 0.95
"""What "confident" promises on the validation images."""
CONFIDENT_LEAST = 20
"""With fewer images above a threshold its accuracy says too little (20 of 20 right is 84-100 % by Wilson)."""

# A probability may differ by this much between a batch and a single image, and must not change sides for it.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Calibration:
    """What is written into the bundle beside the weights."""

    temperature: float
    thresholds: dict[str, float | None]


def calibrate(model: Classifier, data: TrainingData, device: str = "cpu") -> Calibration:
    """Temperature and thresholds of a trained model, from the validation rows of `data`."""
    rows, labels = data.validation.rows, data.validation.labels
    logits = logits_of_rows(model, data.images, rows, data.preprocess, device)
    temperature = fit_temperature(logits, labels)
    threshold = confident_threshold(softmax(logits, temperature), labels)
    return Calibration(temperature, {"confident": threshold})


def fit_temperature(logits: Array, labels: Array) -> float:
    """The T in 0.25..20 for which softmax(logits / T) has the least log loss (Guo et al. 2017, "On calibration of
    modern neural networks"). `logits` (n, classes), `labels` (n,).

    With b = 1 / T the mean log loss is convex, and its slope is the mean of (expected logit under softmax(b z)) minus
    (logit of the true class): bisect for the b at which it is 0.
    """
    if len(labels) == 0:
        return 1.0
    true = logits[np.arange(len(labels)), labels]

    def slope(b: float) -> float:
        return float(((softmax(logits, 1 / b) * logits).sum(axis=1) - true).mean())

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if slope(low) >= 0:
        return _HOTTEST
    if slope(high) <= 0:
        return _COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


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
