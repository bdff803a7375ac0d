"""From a trial's checkpoint to a bundle whose scores are the predictor's own, and so the endpoint's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data import store
from data.collection import Collection, Subset
from data.errors import UserError
from data.images import Failure
from models import checkpoint, confidences, engine, golden
from models.bundle import BundleInfo, add_scores, write_bundle
from models.calibration import NONE_CONFIDENT, calibrate
from models.metrics import beats_majority, score
from models.predictor import Predictor
from models.training import TrainingData, load_best
from tune.trial import Job

_DEVICE = "cpu"
# Images that are read and predicted together while scoring: bounds memory, changes no answer.
_CHUNK = 256


@dataclass(frozen=True)
class Scored:
    """A bundle and what the predictor made of the validation and test images."""

    info: BundleInfo
    metrics: dict[str, Any]  # {"validation": ..., "test": ...}: models.metrics.Scores.as_dict() and "failures"


def make_bundle(job: Job, checkpoint_folder: str, bundle: str) -> Scored:
    """Write the bundle of the best epoch in a checkpoint, then score it through the predictor.

    Temperature and thresholds come from validation rows. The test rows are read here for the first time, from their
    files, by the same path as an image that is posted to the endpoint. A few of them stay in the bundle.
    """
    collection = job.collection
    data = TrainingData.of(collection, job.model.model)
    model = load_best(checkpoint_folder, job.model, cache_dir=collection.config.cache_dir)
    named = engine.fastest(torch.device(_DEVICE))
    calibration = calibrate(model, data, _DEVICE, named)
    write_bundle(
        bundle,
        model,
        classes=collection.classes,
        preprocess=data.preprocess,
        engine=named,
        temperature=calibration.temperature,
        thresholds=calibration.thresholds,
        learning_curve=checkpoint.read(checkpoint_folder)["scores"],
        fingerprints=collection.fingerprints(),
    )
    predictor = Predictor.load(bundle, device=_DEVICE, cache_dir=collection.config.cache_dir)
    answered = {name: _answer(predictor, collection, collection.subset(name)) for name in ("validation", "test")}
    training_labels = collection.subset("train").labels
    metrics = {name: _score(split, collection.classes, training_labels) for name, split in answered.items()}
    kept = _golden(predictor, collection)
    info = add_scores(
        bundle,
        metrics={**metrics, "data": _data(collection)},
        confidences=confidences.histogram(answered["validation"].top_probabilities()),
        golden=kept.entries() if kept else (),
        golden_file=kept.file() if kept else b"",
        # The threshold is from the validation images, by which the trial was chosen too. Where the test images do not
        # show that the model knows more than the commonest class, what it promises there holds nowhere else.
        thresholds=None if beats_majority(metrics["test"]) else NONE_CONFIDENT,
    )
    return Scored(info, metrics)


def _data(collection: Collection) -> dict[str, Any]:
    """What the model learned from and was tested on, for whoever meets the bundle without its report."""
    table = collection.table
    return {
        "per_split": {str(name): int(count) for name, count in table["split"].value_counts().sort_index().items()},
        "groups_per_split": {str(k): int(v) for k, v in table.groupby("split")["group"].nunique().items()},
        "grouping": collection.grouping,
        "generated": collection.generated,
    }


@dataclass(frozen=True, eq=False)
class _Answered:
    """A split, and what the predictor answered to its files."""

    subset: Subset
    probabilities: np.ndarray[Any, Any]  # (n, classes); equal ones for an image without an answer
    failures: dict[int, Failure]  # by place in the split

    def top_probabilities(self) -> list[float]:
        """Of each image that has an answer."""
        tops: list[float] = np.delete(self.probabilities.max(axis=1), list(self.failures)).tolist()
        return tops


def _answer(predictor: Predictor, collection: Collection, subset: Subset) -> _Answered:
    """The predictor over a split's files.

    An image without an answer is scored as if every class were equally likely: leaving it out would flatter.
    """
    probabilities = np.full((len(subset.rows), len(collection.classes)), 1 / len(collection.classes))
    failures: dict[int, Failure] = {}
    if len(subset.rows) == 0:
        raise UserError(f"no images in the {subset.split} split; give more groups or another --split-seed")
    for start in range(0, len(subset.paths), _CHUNK):
        paths = subset.paths[start : start + _CHUNK]
        blobs = [blob for _, blob in store.read_many(paths, cache_dir=collection.config.cache_dir)]
        for place, answer in enumerate(predictor.predict(blobs), start):
            if isinstance(answer, Failure):
                failures[place] = answer
            else:
                probabilities[place] = answer.probabilities
    return _Answered(subset, probabilities, failures)


def _score(split: _Answered, classes: tuple[str, ...], training_labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Scores of the answers, JSON-ready; `failures` names images that had none."""
    scores = score(split.probabilities, split.subset.labels, classes, training_labels=training_labels)
    failures = [
        {"path": split.subset.paths[place], "code": failure.code, "message": failure.message}
        for place, failure in split.failures.items()
    ]
    return {**scores.as_dict(), "failures": failures}


def _golden(predictor: Predictor, collection: Collection) -> golden.Golden | None:
    """A few test images with their answers. The pack's pixels are what the predictor makes of the files."""
    test = collection.subset("test")
    places = golden.choose(test.labels)
    labels = [collection.classes[label] for label in test.labels[places]]
    return golden.make_golden(predictor, collection.images()[test.rows[places]], labels)
