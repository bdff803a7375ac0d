"""What the tests of bundles share: a small model, and a bundle of it."""

from pathlib import Path
from typing import Any

import torch

from models.bundle import BundleInfo, write_bundle
from models.catalog import Classifier, ModelConfig, build
from tests.models_toys import CLASSES, toy_data


def toy_model() -> Classifier:
    """A small network for three classes of 32-pixel images, the same each time."""
    torch.manual_seed(0)
    return build(ModelConfig(dense_units=8), classes=3, image_size=32).eval()


def write(folder: str | Path, model: Classifier, **values: Any) -> BundleInfo:
    """A bundle of the toy data's classes and preprocessing, unless `values` say otherwise."""
    options = {
        "classes": CLASSES,
        "preprocess": toy_data().preprocess,
        "temperature": 1.5,
        "thresholds": {"confident": 0.9},
        "learning_curve": [{"epoch": 1, "validation_loss": 0.5}],
        "fingerprints": {"data": "d", "split": "s"},
    }
    return write_bundle(str(folder), model, **{**options, **values})
