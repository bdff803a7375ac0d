"""Bundle + image -> prediction or named failure. The only way from a picture to an answer, everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.errors import UserError
from data.images import Failure, check_pixels, decode_resized, resize
from models.bundle import BundleInfo, read_bundle
from models.catalog import Classifier
from models.inference import BATCH, logits_of_batch, softmax

Array = np.ndarray[Any, np.dtype[Any]]


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
    """A loaded bundle. An image alone and in a batch gets the same label, and probabilities within 1e-5."""

    def __init__(self, info: BundleInfo, model: Classifier, *, device: str = "cpu") -> None:
        self.info = info
        self._device = torch.device(device)
        self._model = model.to(self._device).eval()

    @classmethod
    def load(cls, bundle: str, *, device: str = "cpu", threads: int | None = None, cache_dir: str = "") -> "Predictor":
        """Read a bundle from a folder or `s3://` address; UserError if it is broken or there is no such device.
        `threads`: torch's, for the whole process; None leaves them."""
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device {device}: torch finds no GPU on this machine; use --device cpu")
        if threads is not None:
            torch.set_num_threads(threads)
        info, model = read_bundle(bundle, cache_dir=cache_dir)
        return cls(info, model, device=device)

    def predict_bytes(self, blobs: Sequence[bytes | Failure]) -> list[Prediction | Failure]:
        """One answer per encoded image, in order. A `Failure` among them (an unreadable file) is handed through."""
        how, answers = self.info.preprocess.resize, list[Prediction | Failure]()
        for start in range(0, len(blobs), BATCH):
            # Resized one by one: 32 pictures of full size would take gigabytes where a few small ones are needed.
            part = blobs[start : start + BATCH]
            answers += self._predict([b if isinstance(b, Failure) else decode_resized(b, how) for b in part])
        return answers

    def predict_arrays(self, arrays: Sequence[Array]) -> list[Prediction | Failure]:
        """One answer per image, in order: upright RGB uint8 (H, W, 3) of any size."""
        how, answers = self.info.preprocess.resize, list[Prediction | Failure]()
        for start in range(0, len(arrays), BATCH):
            part = arrays[start : start + BATCH]
            answers += self._predict([check_pixels(array) or resize(array, how) for array in part])
        return answers

    def _predict(self, images: Sequence[Array | Failure]) -> list[Prediction | Failure]:
        """At most one batch, of images that have the network's size."""
        answers: list[Prediction | Failure | None] = [image if isinstance(image, Failure) else None for image in images]
        places = [place for place, answer in enumerate(answers) if answer is None]
        if places:
            batch = np.stack([image for image in images if not isinstance(image, Failure)])
            logits = logits_of_batch(self._model, batch, self.info.preprocess, self._device)
            for place, row in zip(places, softmax(logits, self.info.temperature), strict=True):
                answers[place] = self._answer(row)
        return [answer for answer in answers if answer is not None]

    def _answer(self, probabilities: Array) -> Prediction | Failure:
        if not np.isfinite(probabilities).all():
            return Failure(
                "not_a_number", "the network gave no number for this image; look at the image, then the bundle"
            )
        top = int(probabilities.argmax())
        threshold = self.info.thresholds.get("confident")
        return Prediction(
            label=self.info.classes[top],
            probability=float(probabilities[top]),
            probabilities=tuple(float(value) for value in probabilities),
            confident=None if threshold is None else bool(probabilities[top] >= threshold),
        )
