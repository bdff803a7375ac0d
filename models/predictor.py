"""Bundle + image -> prediction or named failure. The only way from a picture to an answer, everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from data.errors import UserError
from data.images import Failure, Pixels, check_pixels, decode_resized, resize
from models.bundle import BundleInfo, read_bundle
from models.catalog import Classifier
from models.engine import EngineName
from models.inference import BATCH, Network, softmax

Image: TypeAlias = bytes | Pixels | Failure
"""Encoded, or upright RGB uint8 (H, W, 3) of any size, or why there is neither (an unreadable file). Where a JPEG would
be reduced while it is decoded (`data.resizing`), its pixels in full give probabilities that are near, not equal."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    label: str
    probability: float
    """Of `label`, after calibration."""
    probabilities: tuple[float, ...]
    """Of all classes, in the bundle's order; they sum to 1."""
    confident: bool | None
    """Whether `probability` reaches the bundle's "confident" threshold; None if the bundle has none."""


class Predictor:
    """A loaded bundle. An image alone and in a batch gets the same label, and probabilities within 1e-5.

    The network runs in the engine that the bundle names, the one that its scores come from; on a GPU in torch, whatever
    is named, with probabilities within 1e-4 of those. Nothing is kept between calls, so any thread may call; what the
    process shares is torch's number of threads and, during a call on a GPU, its choice of precision.
    """

    def __init__(self, info: BundleInfo, model: Classifier, *, device: str = "cpu") -> None:
        """`model`: in eval mode, on the CPU."""
        self.info = info
        self._network = Network(model, info.preprocess, info.engine, device)

    @classmethod
    def load(cls, bundle: str, *, device: str = "cpu", threads: int | None = None, cache_dir: str = "") -> "Predictor":
        """Read a bundle from a folder or `s3://` address; UserError if it is broken or there is no such device.

        `threads`: how many the network takes on a CPU. They are torch's for the whole process as well; None leaves
        those as they are, and takes as many.
        """
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device {device}: torch finds no GPU on this machine; use --device cpu")
        if threads is not None:
            torch.set_num_threads(threads)
        info, model = read_bundle(bundle, cache_dir=cache_dir)
        return cls(info, model, device=device)

    @property
    def engine(self) -> EngineName:
        """What runs the network here: the bundle's engine on a CPU, torch on a GPU."""
        return self._network.engine

    def predict(self, images: Sequence[Image]) -> list[Prediction | Failure]:
        """One answer per image, in order; a `Failure` among them is handed through."""
        answers = list[Prediction | Failure]()
        for start in range(0, len(images), BATCH):
            # Resized one by one: 32 pictures of full size would take gigabytes where a few small ones are needed.
            answers += self._predict([self._resized(image) for image in images[start : start + BATCH]])
        return answers

    def predict_bytes(self, blobs: Sequence[bytes | Failure]) -> list[Prediction | Failure]:
        """`predict` for those who have encoded images only."""
        return self.predict(blobs)

    def predict_arrays(self, arrays: Sequence[Pixels]) -> list[Prediction | Failure]:
        """`predict` for those who have pixels only."""
        return self.predict(arrays)

    def _resized(self, image: Image) -> Pixels | Failure:
        if isinstance(image, Failure):
            return image
        how = self.info.preprocess.resize
        if not isinstance(image, np.ndarray):
            return decode_resized(image, how)
        if image.dtype == np.uint8 and image.shape == (how.size, how.size, 3):
            return image  # resizing would copy it twice, and change nothing
        return check_pixels(image) or resize(image, how)

    def _predict(self, images: Sequence[Pixels | Failure]) -> list[Prediction | Failure]:
        """At most one batch, of images that have the network's size."""
        pixels = [image for image in images if not isinstance(image, Failure)]
        found = iter(self._answers(pixels) if pixels else ())
        return [image if isinstance(image, Failure) else next(found) for image in images]

    def _answers(self, pixels: Sequence[Pixels]) -> list[Prediction | Failure]:
        probabilities = softmax(self._network.logits(pixels), self.info.temperature)
        # Whole columns at once: numpy takes longer to begin than to work through a row of a few classes.
        finite, tops = np.isfinite(probabilities.sum(axis=1)).tolist(), probabilities.argmax(axis=1).tolist()
        classes, threshold = self.info.classes, self.info.thresholds.get("confident")
        return [
            Prediction(
                label=classes[top],
                probability=row[top],
                probabilities=tuple(row),
                confident=None if threshold is None else row[top] >= threshold,
            )
            if fine
            else Failure(
                "not_a_number", "the network gave no number for this image; look at the image, then the bundle"
            )
            for row, fine, top in zip(probabilities.tolist(), finite, tops, strict=True)
        ]
