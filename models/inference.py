"""Pixels to logits outside training: what the predictor and the calibration share."""

from typing import Any

import numpy as np
import torch

from models.catalog import Classifier
from models.preprocess import Preprocess

BATCH = 32
"""Images at a time. A CPU gains nothing from more, and memory stays small whatever is asked."""

Array = np.ndarray[Any, np.dtype[Any]]


def logits_of_batch(model: Classifier, images: Array, preprocess: Preprocess, device: torch.device) -> Array:
    """`images` uint8 (B, H, W, 3), already resized -> logits float64 (B, classes). The model is in eval mode."""
    with torch.inference_mode():
        logits: Array = model(preprocess.to_batch(images, device)).double().cpu().numpy()
    return logits


def logits_of_rows(
    model: Classifier, images: Array, rows: Array, preprocess: Preprocess, device: str | torch.device = "cpu"
) -> Array:
    """Logits float64 (n, classes) of `rows` (n,) of a pack (N, H, W, 3)."""
    model.eval()
    parts = [
        logits_of_batch(model, images[rows[start : start + BATCH]], preprocess, torch.device(device))
        for start in range(0, len(rows), BATCH)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, model.classes))


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Probabilities (n, classes) in float64, after division by the temperature. NaN stays NaN."""
    scaled = logits / temperature
    with np.errstate(invalid="ignore"):  # inf - inf: the row becomes NaN, which the predictor turns into a Failure
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares
