"""The first stage of a promotion, before anything is touched: both bundles are loaded here and shown golden images."""

import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from data.errors import UserError
from data.images import Pixels
from models.bundle import BundleInfo
from models.golden import Golden, GoldenResult, check_golden, read_golden
from models.metrics import wilson
from models.predictor import Prediction, Predictor
from serve.endpoint import warm_up
from serve.promotion.compare import class_difference
from serve.promotion.judge import Limits

# Golden images are few: a limit counts as broken only where three standard deviations say so.
_Z: Final = 3.0
_TIMED: Final = 16


@dataclass(frozen=True, eq=False)
class GoldenStage:
    """What was found."""

    new: BundleInfo
    seen: tuple[str, ...]
    """What was looked at, in words."""
    problems: tuple[str, ...]
    """What speaks against the new bundle; empty where nothing does."""
    images: tuple[Pixels, ...]
    """Golden images of both bundles, uint8 (S, S, 3)."""


def check_bundles(
    new_bundle: str, old_bundle: str, limits: Limits, *, old_model: str = "", threads: int = 0, cache_dir: str = ""
) -> GoldenStage:
    """Try the new bundle by itself and beside the one in service. UserError if either cannot be read.

    `old_model`: the id of the model in service, if it is known.
    """
    new = Predictor.load(new_bundle, threads=threads or None, cache_dir=cache_dir)
    old = Predictor.load(old_bundle, threads=threads or None, cache_dir=cache_dir)
    if old_model not in ("", old.info.id):
        replaced = (
            f"{old_bundle} holds the model {old.info.id} now, but {old_model} was put in service from there: put its "
            "files back first, since a replica that starts could not load it"
        )
        return GoldenStage(new.info, (), (replaced,), ())
    if new.info.id == old.info.id:
        return GoldenStage(new.info, (), (f"model {new.info.id} is in service already",), ())
    if new.info.classes != old.info.classes:
        return GoldenStage(new.info, (), (_other_classes(new_bundle, new.info, old.info),), ())
    try:
        warm_up(new, 1)
    except UserError as error:
        return GoldenStage(new.info, (), (str(error),), ())
    golden, other = (read_golden(bundle, cache_dir=cache_dir) for bundle in (new_bundle, old_bundle))
    ours, theirs = (() if one is None else tuple(one.images) for one in (golden, other))
    images = [*ours, *theirs]
    # Said with what was counted: each bundle's are test images of the data that it was made from.
    parts = ((len(ours), "the new bundle"), (len(theirs), "the one in service"))
    whose = ", ".join(f"{count} of {bundle}" for count, bundle in parts if count)
    seen, problems = _own_report(new, golden)
    for found in (_agreement(new, old, images, whose, limits), _latency(new, old, images, limits)):
        seen += found[0]
        problems += found[1]
    return GoldenStage(new.info, tuple(seen), tuple(problems), tuple(images))


def _other_classes(bundle: str, new: BundleInfo, old: BundleInfo) -> str:
    start = f"`serve/app.py --bundle {shlex.quote(bundle)}`"
    return (
        f"its classes are not those in service ({class_difference(new.classes, old.classes)}), and a model with other "
        "classes cannot be promoted in place: end the endpoint and start it with the new bundle (on this machine "
        f"`serve/app.py --down`, then {start})"
    )


def _own_report(new: Predictor, golden: Golden | None) -> tuple[list[str], list[str]]:
    """Whether it answers here what it answered when it was scored, and is about as good as its report says."""
    if golden is None:
        return ["the bundle holds no golden images (an older one): its answers were not checked"], []
    result = check_golden(new, golden)
    problems = list(result.problems)
    scored = new.info.metrics.get("test", {}).get("balanced_accuracy")
    # Golden images are spread over the classes, which is what the balanced accuracy looks at.
    if isinstance(scored, float) and wilson(result.right, result.images, _Z)[1] < scored:
        problems.append(
            f"it is right on {result.right} of its {result.images} golden images; its report says {scored:.0%}"
        )
    return [_told(result)], problems


def _told(result: GoldenResult) -> str:
    same = "all as recorded" if result.passed else f"{result.agree} as recorded"
    return f"{result.images} golden images: {same}, {result.right} right"


def _agreement(
    new: Predictor, old: Predictor, images: Sequence[Pixels], whose: str, limits: Limits
) -> tuple[list[str], list[str]]:
    if not images:
        return [], []
    pairs = zip(new.predict(images), old.predict(images), strict=True)
    agreed = sum(
        isinstance(ours, Prediction) and isinstance(theirs, Prediction) and ours.label == theirs.label
        for ours, theirs in pairs
    )
    told = f"{agreed} of {len(images)} golden images ({whose}) get the label that the model in service gives"
    if wilson(agreed, len(images), _Z)[1] < limits.min_agreement:
        way = "--min-agreement: lower it if the new model is meant to differ"
        return [], [f"{told}: clearly below {limits.min_agreement:.0%} ({way})"]
    return [told], []


def _latency(new: Predictor, old: Predictor, images: Sequence[Pixels], limits: Limits) -> tuple[list[str], list[str]]:
    """Both on the same images, alone, in turns: whatever else this machine does slows both."""
    if not images:
        images = [np.full((256, 256, 3), 128, np.uint8)] * _TIMED
    step = -(-len(images) // _TIMED)
    pairs = [(_seconds(new, image), _seconds(old, image)) for image in images[::step]]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    milliseconds = 1000 * statistics.median(ours for ours, _ in pairs)
    told = f"{milliseconds:.3g} ms an image, {ratio:.1f} times the time of the model in service"
    if ratio > limits.max_latency_ratio:
        way = "--max-latency-ratio: raise it if the new model may take longer"
        return [], [f"{told}: above {limits.max_latency_ratio:g} ({way})"]
    return [told], []


def _seconds(model: Predictor, image: Pixels) -> float:
    begin = time.perf_counter()
    model.predict([image])
    return time.perf_counter() - begin
