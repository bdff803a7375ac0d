"""From a trial's checkpoint to a bundle whose scores are the predictor's own, and so the endpoint's."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data import store
from data.collection import Collection, Subset
from data.errors import UserError
from data.images import Failure
from models import checkpoint
from models.bundle import BundleInfo, update_metrics, write_bundle
from models.calibration import calibrate
from models.metrics import score
from models.predictor import Predictor
from models.training import TrainingData, load_best
from tune.trial import Job

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
    files, by the same path as an image that is posted to the endpoint.
    """
    collection = job.collection
    data = TrainingData.of(collection, job.model.model)
    model = load_best(checkpoint_folder, job.model, cache_dir=collection.config.cache_dir)
    calibration = calibrate(model, data)
    write_bundle(
        bundle,
        model,
        classes=collection.classes,
        preprocess=data.preprocess,
        temperature=calibration.temperature,
        thresholds=calibration.thresholds,
        learning_curve=checkpoint.read(checkpoint_folder)["scores"],
        fingerprints=collection.fingerprints(),
    )
    predictor = Predictor.load(bundle, cache_dir=collection.config.cache_dir)
    training_labels = collection.subset("train").labels
    metrics = {
        split: score_subset(predictor, collection, collection.subset(split), training_labels)
        for split in ("validation", "test")
    }
    return Scored(update_metrics(bundle, metrics), metrics)


def score_subset(
    predictor: Predictor, collection: Collection, subset: Subset, training_labels: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Scores of the predictor over a split's files, JSON-ready; `failures` names images that had no answer.

    An image without an answer is scored as if every class were equally likely: leaving it out would flatter.
    """
    probabilities = np.full((len(subset.rows), len(collection.classes)), 1 / len(collection.classes))
    failures: list[dict[str, str]] = []
    if len(subset.rows) == 0:
        raise UserError(f"no images in the {subset.split} split; give more groups or another --split-seed")
    for start in range(0, len(subset.paths), _CHUNK):
        paths = subset.paths[start : start + _CHUNK]
        blobs = [blob for _, blob in store.read_many(paths, cache_dir=collection.config.cache_dir)]
        for place, answer in enumerate(predictor.predict_bytes(blobs), start):
            if isinstance(answer, Failure):
                failures.append({"path": subset.paths[place], "code": answer.code, "message": answer.message})
            else:
                probabilities[place] = answer.probabilities
    scores = score(probabilities, subset.labels, collection.classes, training_labels=training_labels)
    return {**scores.as_dict(), "failures": failures}
