"""Golden images: a few test images in the bundle, with the answers that it gave when it was scored.

Whoever loads the bundle, on whatever machine, can see that it still gives them, before anybody relies on it.
"""

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy

from data import store
from data.errors import UserError
from data.images import Failure, Pixels
from models.bundle import GOLDEN_FILE, BundleInfo, read_checked, read_info
from models.predictor import Image, Prediction

MOST = 16
"""Golden images in a bundle: enough to meet several classes, few enough to be checked in a second."""
TOLERANCE = 1e-4
"""How far a probability may be from the golden one: what engines and processors differ by."""

_TENSOR = "images"

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Answering(Protocol):
    """What is asked of a `models.predictor.Predictor`."""

    @property
    def info(self) -> BundleInfo: ...

    def predict(self, images: Sequence[Image]) -> list[Prediction | Failure]: ...


@dataclass(frozen=True)
class GoldenAnswer:
    """One golden image, in words: what is in bundle.json."""

    label: str
    """What a person said that it shows."""
    predicted: str
    probabilities: Mapping[str, float]
    """By class, as the predictor answered it with the engine that the bundle names."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Golden images, and what was answered to each."""

    images: Pixels
    """uint8 (n, S, S, 3), already resized; n is 1 to 16."""
    answers: tuple[GoldenAnswer, ...]

    def file(self) -> bytes:
        """The images as golden.safetensors."""
        return safetensors.numpy.save({_TENSOR: self.images})

    def entries(self) -> list[dict[str, Any]]:
        """The answers, JSON-ready."""
        return [asdict(answer) for answer in self.answers]


@dataclass(frozen=True)
class GoldenResult:
    """How a predictor did on golden images."""

    images: int
    problems: tuple[str, ...]
    """What differs from the golden answers, a sentence each; empty where nothing does."""
    agree: int
    """Images that were given the same class as then."""
    right: int
    """Images that were given the class that a person said."""
    largest_difference: float
    """Of any probability from the golden one, 0 to 1; of the images that were answered, and the classes of both."""
    seconds: float
    """Median for an image alone, resized already."""

    @property
    def passed(self) -> bool:
        """Whether every answer is the golden one, within the tolerance."""
        return not self.problems


def choose(labels: Rows, most: int = MOST) -> Rows:
    """Places in `labels` (n,) of at most `most` images, in order: spread over the classes, in each class over its
    images. The same choice for the same labels."""
    present = np.unique(labels)
    if len(present) > most:
        present = present[_spread(len(present), most)]
    left, taken = {int(label): int((labels == label).sum()) for label in present}, dict.fromkeys(present.tolist(), 0)
    for label in itertools.islice(_in_turns(left), most):
        taken[label] += 1
    parts = [np.flatnonzero(labels == label)[_spread(left[label], count)] for label, count in taken.items()]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def _in_turns(counts: Mapping[int, int]) -> Iterator[int]:
    """Each key as often as its count, all keys by turns."""
    for turn in range(max(counts.values(), default=0)):
        yield from (key for key, count in counts.items() if turn < count)


def _spread(n: int, count: int) -> Rows:
    """`count` of the numbers 0 to n - 1, evenly spaced; count <= n."""
    return (np.arange(count) * 2 + 1) * n // (2 * count)


def make_golden(predictor: Answering, images: Pixels, labels: Sequence[str]) -> Golden | None:
    """What `predictor` answers to `images` uint8 (n, S, S, 3), already resized, of the classes `labels` (n,). An image
    without an answer is left out; None if none is left."""
    kept, answers = [], []
    for place, (label, answer) in enumerate(zip(labels, predictor.predict(list(images)), strict=True)):
        if isinstance(answer, Prediction):
            kept.append(place)
            answers.append(GoldenAnswer(label, answer.label, _by_class(predictor, answer)))
    return Golden(np.ascontiguousarray(images[kept]), tuple(answers)) if kept else None


def read_golden(bundle: str, *, cache_dir: str = "") -> Golden | None:
    """The golden images of a bundle, a folder or `s3://` address; None if it has none (an older one, or without test
    images). UserError if the file is missing, damaged, or does not fit bundle.json."""
    info = read_info(bundle)
    if not info.golden:
        return None
    path = store.join(bundle, GOLDEN_FILE)
    blob = read_checked(bundle, GOLDEN_FILE, info.fingerprints["golden"], cache_dir=cache_dir)
    try:
        images = safetensors.numpy.load(blob)[_TENSOR]
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a safetensors file of images ({error!r}); write the bundle again") from error
    side = info.preprocess.resize.size
    if images.dtype != np.uint8 or images.shape != (len(info.golden), side, side, 3):
        raise UserError(
            f"{path}: {images.dtype} {images.shape} does not fit {len(info.golden)} images of {side} pixels; "
            "write the bundle again"
        )
    return Golden(images, tuple(_answer(entry) for entry in info.golden))


def check_golden(predictor: Answering, golden: Golden) -> GoldenResult:
    """Show each golden image to `predictor`, alone, and compare what it says with what was said then.

    Classes are compared by name, and may lie in another order. The golden images may be another bundle's: classes that
    one side lacks are a problem, and the probabilities of the others are compared all the same.
    """
    answers, seconds = _ask(predictor, golden.images)
    known, expected = set(predictor.info.classes), set(golden.answers[0].probabilities)
    gaps, failures, agree, right = list[_Gap](), list[str](), 0, 0
    for place, (then, now) in enumerate(zip(golden.answers, answers, strict=True), 1):
        if isinstance(now, Failure):
            failures.append(f"image {place}, {then.label!r}: {now.message}")
            continue
        agree, right = agree + (now.label == then.predicted), right + (now.label == then.label)
        gaps.append(_largest_gap(place, then, now.label, _by_class(predictor, now), known & expected))
    return GoldenResult(
        images=len(answers),
        problems=tuple(_problems(known, expected, failures, gaps, len(answers))),
        agree=agree,
        right=right,
        largest_difference=max((gap.size for gap in gaps), default=0.0),
        seconds=seconds,
    )


@dataclass(frozen=True)
class _Gap:
    """Where the answer to one image differs most from the golden one."""

    size: float
    words: str


def _largest_gap(place: int, then: GoldenAnswer, label: str, now: Mapping[str, float], classes: set[str]) -> _Gap:
    gap = _Gap(0.0, "")
    for name in sorted(classes):
        mine, golden = now.get(name, math.nan), then.probabilities[name]
        size = abs(mine - golden)
        size = size if math.isfinite(size) else math.inf
        if size > gap.size:
            called = "" if label == then.predicted else f", and the answer is {label!r} instead of {then.predicted!r}"
            gap = _Gap(size, f"image {place}, {then.label!r}: {name!r} gets {mine:.4f}, was {golden:.4f}{called}")
    return gap


def _problems(
    known: set[str], expected: set[str], failures: Sequence[str], gaps: Sequence[_Gap], total: int
) -> Iterator[str]:
    if lacking := sorted(expected - known):
        yield f"the model lacks {_listed(lacking)} of the golden answers"
    if new := sorted(known - expected):
        yield f"the golden answers lack {_listed(new)} of the model"
    if failures:
        yield f"{len(failures)} of {total} golden images get no answer; {failures[0]}"
    wrong = [gap for gap in gaps if gap.size > TOLERANCE]
    if wrong:
        worst = max(wrong, key=lambda gap: gap.size)
        yield f"{len(wrong)} of {total} golden images get other probabilities; most of all {worst.words}"


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(repr(name) for name in names[:3])
    return f"the class{'es' if len(names) > 1 else ''} {some}{' and others' if len(names) > 3 else ''}"


def _ask(predictor: Answering, images: Pixels) -> tuple[list[Prediction | Failure], float]:
    """The answers to the images, each alone, and the median seconds of one."""
    predictor.predict([images[0]])  # the first call of all also sets up memory
    answers, seconds = list[Prediction | Failure](), list[float]()
    for image in images:
        started = time.perf_counter()
        answers += predictor.predict([image])
        seconds.append(time.perf_counter() - started)
    return answers, statistics.median(seconds)


def _by_class(predictor: Answering, answer: Prediction) -> dict[str, float]:
    return dict(zip(predictor.info.classes, answer.probabilities, strict=False))


def _answer(entry: Mapping[str, Any]) -> GoldenAnswer:
    return GoldenAnswer(entry["label"], entry["predicted"], entry["probabilities"])
