"""What goes into a training run and what comes out of each of its epochs."""

from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from data.collection import Collection, Subset
from data.errors import UserError
from models.preprocess import Preprocess


class NonFiniteLoss(UserError):  # noqa: N818 - named for what is seen: a loss that is no number
    """The loss is no finite number any more; the message names epoch, batch and learning rate."""


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from. The test rows are not in it."""

    images: np.ndarray[Any, Any]
    """uint8 (N, H, W, 3): the pack, read-only."""
    train: Subset
    validation: Subset
    classes: tuple[str, ...]
    preprocess: Preprocess
    pack_key: str = ""
    """Names the content of `images` for the cache of features; empty: `models.features.content_key` is taken."""

    @classmethod
    def of(cls, collection: Collection, model: str) -> "TrainingData":
        """The training and validation rows of a collection, prepared for `model`."""
        return cls(
            images=collection.images(),
            train=collection.subset("train"),
            validation=collection.subset("validation"),
            classes=collection.classes,
            preprocess=Preprocess.for_model(model, collection.resize),
            pack_key=PurePath(collection.pack_path).name,  # a digest of what is in the pack
        )

    def check(self) -> None:
        """UserError where there is nothing to learn from or nothing to judge by."""
        for subset in (self.train, self.validation):
            if len(subset.rows) == 0:
                raise UserError(
                    f"no images in the {subset.split} split; give more images, more groups, or another --split-seed"
                )


@dataclass(frozen=True)
class EpochScores:
    """What one epoch gave. The training numbers are taken while the weights change, dropout and augmentation on."""

    epoch: int  # from 1
    learning_rate: float  # of the last batch
    training_loss: float
    training_accuracy: float
    validation_loss: float  # mean natural log loss, unweighted
    validation_accuracy: float
    validation_balanced_accuracy: float  # mean recall over the classes that validation has
    validation_top_share: float  # of the validation images, those given the class that is named most often, 0..1
    dead_units: float  # of the dense layer's units, those that are zero for every validation image, 0..1
    images: int  # training images seen in this epoch, all workers together
    seconds: float
    cpu_seconds: float  # of this process and all its threads
    best_epoch: int
    best_validation_loss: float
    best_validation_accuracy: float  # of the best epoch, which is the one with the least validation loss

    def as_dict(self) -> dict[str, int | float]:
        """JSON-ready."""
        return asdict(self)
