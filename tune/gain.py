"""What the search gained: the best trial against the default hyperparameters, on the same test images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features import FrozenBase
from models.inference import logits_of_rows
from models.metrics import paired_difference
from models.training import TrainingData, load_best
from tune.trial import Job


def gain(best: Job, best_folder: str, default: Job, default_folder: str) -> dict[str, Any]:
    """Test accuracy of the best trial minus that of the defaults, with a 95 % interval of the paired difference.

    Each is the network of its checkpoint. The test images have no part in the choice of the best, so the difference is
    not flattered by having been chosen, as one on the validation images would be.
    """
    ours, theirs = right_answers(best, best_folder), right_answers(default, default_folder)
    won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    difference, low, high = paired_difference(won, lost, len(ours))
    return {
        "split": "test",
        "n": len(ours),
        "best_accuracy": float(ours.mean()),
        "default_accuracy": float(theirs.mean()),
        "difference": difference,
        "interval": [low, high],
    }


def right_answers(job: Job, folder: str) -> NDArray[np.bool_]:
    """Which test images (n,) the best epoch's network of a checkpoint answers rightly, from the pack's pixels."""
    collection, test = job.collection, job.collection.subset("test")
    cache_dir = collection.config.cache_dir
    model = load_best(folder, job.model, cache_dir=cache_dir)
    data = TrainingData.of(collection, job.model.model)
    if not job.model.frozen:
        logits = logits_of_rows(model, data.images, test.rows, data.preprocess)
    else:
        base = FrozenBase(
            job.model,
            data.images,
            data.preprocess,
            pack_key=data.pack_key,
            device=job.device,
            cache_dir=cache_dir,
        )
        logits = model.logits_of_features(base.features()[test.rows])
    right: NDArray[np.bool_] = logits.argmax(axis=1) == test.labels
    return right


def words(gained: dict[str, Any] | None, picked: int, top: int) -> str:
    """The verdict in a sentence on the trial that was picked. `top` is the trial with the highest score; `gained` is
    None where there is nothing to compare."""
    if picked == 0 and top != 0:
        return f"the picked trial has the default hyperparameters; trial {top} is more accurate"
    if picked == 0:
        return "the search gained nothing: no trial beat the default hyperparameters on the validation images"
    if gained is None:
        return "the default hyperparameters gave no finished trial to compare with"
    low, high = gained["interval"]
    accuracies = f"{gained['best_accuracy']:.3f} against {gained['default_accuracy']:.3f}"
    difference = (
        f"{gained['difference']:+.3f} test accuracy, {accuracies} with the default hyperparameters "
        f"(95 % interval {low:+.3f} to {high:+.3f}, {gained['n']} test images)"
    )
    if low > 0:
        return f"the search gained {difference}"
    if high < 0:
        return f"trial {picked} is worse than the default hyperparameters: {difference}"
    return f"the search gained nothing that can be told from chance: {difference}"
