"""How good a classifier is, with intervals, and always beside what guessing would reach. numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]

# Probabilities are clipped to eps..1 - eps before the logarithm, eps being float64's machine epsilon (2.2e-16), as
# scikit-learn does: one image that is called impossible then costs 36, not infinity.
LOG_LOSS_CLIP = float(np.finfo(np.float64).eps)


def wilson(successes: int, n: int, z: float = 1.96) -> Interval:
    """Wilson's score interval of a proportion, 95 % by default; (0, 1) if n is 0.

    centre (p + z^2 / 2n) / (1 + z^2 / n), half width z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2); Wilson 1927.
    Unlike p +- z sqrt(p (1 - p) / n) it stays inside 0..1 and is no point at p = 0 or 1. It takes images as
    independent: frames of one group are not, so the true interval over new groups is wider.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    p, share = successes / n, z * z / n
    centre = (p + share / 2) / (1 + share)
    half = z / (1 + share) * float(np.sqrt(p * (1 - p) / n + share / (4 * n)))
    # At the ends the bound is exactly 0 or 1; rounding would miss it by a hair.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def paired_difference(won: int, lost: int, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """Difference of two accuracies on the same n images, and its interval, 95 % by default.

    `won` images are answered rightly by the first only, `lost` by the second only. The interval is Agresti and Min's
    (Statistics in Medicine 24, 2005): the usual one after half an image more in each of the four cells, which keeps
    its promise for few images. It takes images as independent, as `wilson` does.
    """
    if not (won >= 0 and lost >= 0 and won + lost <= n and n > 0):
        raise ValueError(f"won and lost must be counts of at most n > 0 images, got {won}, {lost} of {n}")
    b, c, count = won + 0.5, lost + 0.5, n + 2
    centre = (b - c) / count
    half = z * float(np.sqrt(b + c - (b - c) ** 2 / count)) / count
    return (won - lost) / n, max(-1.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class ClassScores:
    """One class. Recall is over its `n` images, precision over the `predicted` ones that were called it; None of 0."""

    label: str
    n: int
    predicted: int
    recall: float | None
    recall_interval: Interval
    precision: float | None
    precision_interval: Interval


@dataclass(frozen=True)
class Scores:
    """Shares are 0..1, intervals 95 % Wilson."""

    n: int
    accuracy: float
    accuracy_interval: Interval
    majority_label: str
    majority_rate: float  # accuracy of always naming the commonest label among the scored images
    training_majority_label: str | None
    training_majority_rate: float | None  # accuracy of always naming the commonest label of the training images
    balanced_accuracy: float  # mean recall over the classes that were scored
    macro_f1: float  # mean F1 over the classes that were scored or predicted
    log_loss: float  # natural logarithm, probabilities clipped to LOG_LOSS_CLIP
    per_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]  # [true][predicted], classes in order

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = asdict(self)
        values["accuracy_interval"] = list(self.accuracy_interval)
        values["confusion"] = [list(row) for row in self.confusion]
        values["per_class"] = [
            {name: list(value) if isinstance(value, tuple) else value for name, value in each.items()}
            for each in values["per_class"]
        ]
        return values


def beats_majority(scores: Mapping[str, Any]) -> bool:
    """Whether scores, as a report holds them, are shown to be better than always naming the commonest label: the whole
    95 % interval of the accuracy lies above that."""
    return bool(scores["accuracy_interval"][0] > scores["majority_rate"])


def confusion_matrix(predicted: Array, labels: Array, classes: int) -> Array:
    """Counts int64 (classes, classes), [true][predicted]."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def log_loss(probabilities: Array, labels: Array) -> float:
    """Mean of -ln p(true class), p clipped to LOG_LOSS_CLIP..1 - LOG_LOSS_CLIP."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(true, LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)).mean())


def score(
    probabilities: Array, labels: Array, classes: Sequence[str], *, training_labels: Array | None = None
) -> Scores:
    """Score `probabilities` (n, k) against `labels` (n,), indices into `classes` (k,). ValueError if n is 0 or the
    shapes do not fit. Of equal probabilities, or equally common labels, the first class counts."""
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    n, k = len(labels), len(classes)
    if n == 0 or probabilities.shape != (n, k):
        raise ValueError(f"probabilities must be (n, {k}) for n > 0 labels, got {probabilities.shape} for {n} labels")
    if labels.min() < 0 or labels.max() >= k:
        raise ValueError(f"labels must be 0 to {k - 1}, got {labels.min()} to {labels.max()}")
    confusion = confusion_matrix(probabilities.argmax(axis=1), labels, k)
    right, counts, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    present, seen = counts > 0, (counts + predicted) > 0
    usual = None if training_labels is None or len(training_labels) == 0 else int(np.bincount(training_labels).argmax())
    hits = int(right.sum())
    return Scores(
        n=n,
        accuracy=hits / n,
        accuracy_interval=wilson(hits, n),
        majority_label=classes[int(counts.argmax())],
        majority_rate=float(counts.max() / n),
        training_majority_label=None if usual is None else classes[usual],
        training_majority_rate=None if usual is None else float(counts[usual] / n),
        balanced_accuracy=float((right[present] / counts[present]).mean()),
        macro_f1=float((2 * right[seen] / (counts + predicted)[seen]).mean()),
        log_loss=log_loss(probabilities, labels),
        per_class=tuple(
            _class_scores(label, int(right[i]), int(counts[i]), int(predicted[i])) for i, label in enumerate(classes)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def _class_scores(label: str, right: int, n: int, predicted: int) -> ClassScores:
    return ClassScores(
        label=label,
        n=n,
        predicted=predicted,
        recall=right / n if n else None,
        recall_interval=wilson(right, n),
        precision=right / predicted if predicted else None,
        precision_interval=wilson(right, predicted),
    )
