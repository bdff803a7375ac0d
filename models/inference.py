"""Pixels to logits outside training: what the predictor and the calibration share."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from models import engine
from models.catalog import Classifier
from models.engine import EngineName
from models.preprocess import Preprocess

BATCH = 32
"""Most images at a time. A CPU gains nothing from more, and memory stays small whatever is asked."""

# The side for which `engine.best_batch` was measured.
_MEASURED_SIDE = 224

Array = np.ndarray[Any, np.dtype[Any]]


def engine_on(named: EngineName, device: torch.device) -> EngineName:
    """What runs on `device` of a model that names an engine: that engine on a CPU; on a GPU torch, whatever is named.

    The engines agree within 1e-4, so a model that was scored by ONNX Runtime may be served from a GPU. It is not so the
    other way round: one that was scored by torch stays with torch on a CPU, though the other engine would be faster.
    """
    return named if device.type == "cpu" else "torch"


def images_at_once(name: EngineName, side: int) -> int:
    """How many images of `side` pixels an engine should be given at a time, 1 to BATCH.

    What counts is that their activations fit into the cache, so it goes with the area. ONNX Runtime, CPU microseconds
    an image of side 64 in resnet18: 1,960 by fours, 1,400 by 32; of side 224 in mobilenet_v2: 4,020 and 5,470.
    """
    return max(1, min(BATCH, round(engine.best_batch(name) * (_MEASURED_SIDE / side) ** 2)))


class Network:
    """A network that learns no more, behind an engine: resized pixels in, logits out. Any thread may call it."""

    def __init__(
        self, model: Classifier, preprocess: Preprocess, named: EngineName, device: str | torch.device = "cpu"
    ) -> None:
        """`model` in eval mode. ONNX Runtime takes as many threads as torch has now, and keeps its own copy."""
        self._device, self._preprocess = torch.device(device), preprocess
        self.engine = engine_on(named, self._device)
        self._forward = engine.load(self.engine, model, self._device)
        self._each = images_at_once(self.engine, preprocess.resize.size)

    def logits(self, images: Sequence[Array] | Array) -> Array:
        """float64 (B, classes) of B >= 1 images uint8 (H, W, 3), already resized."""
        starts = range(0, len(images), self._each)
        parts = [self._run(images[start : start + self._each]) for start in starts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: Sequence[Array] | Array) -> Array:
        if self.engine == "onnxruntime":
            batch = torch.from_numpy(self._preprocess.to_array(images))
            return self._forward(batch).numpy().astype(np.float64)
        with torch.inference_mode(), _in_full_precision(self._device):
            batch = self._preprocess.to_batch(np.stack(list(images)), self._device)
            logits: Array = self._forward(batch).double().cpu().numpy()
        return logits


@contextlib.contextmanager
def _in_full_precision(device: torch.device) -> Iterator[None]:
    """On a GPU torch rounds the inputs of convolutions to 10 bits of mantissa (TF32) unless told not to: too coarse for
    answers that must agree with a CPU's within 1e-4. The switch is the process's, so nothing should train meanwhile."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def logits_of_rows(
    model: Classifier,
    images: Array,
    rows: Array,
    preprocess: Preprocess,
    device: str | torch.device = "cpu",
    named: EngineName | None = None,
) -> Array:
    """Logits float64 (n, classes) of `rows` (n,) of a pack (N, H, W, 3), by the engine `named` or the fastest one."""
    if not len(rows):
        return np.zeros((0, model.classes))
    network = Network(model.eval(), preprocess, named or engine.fastest(torch.device(device)), device)
    return np.concatenate([network.logits(images[rows[at : at + BATCH]]) for at in range(0, len(rows), BATCH)])


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Probabilities (n, classes) in float64, after division by the temperature. NaN stays NaN."""
    scaled = logits / temperature
    with np.errstate(invalid="ignore"):  # inf - inf: the row becomes NaN, which the predictor turns into a Failure
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares
