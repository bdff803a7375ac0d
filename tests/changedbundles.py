"""Bundles made out of others: with golden images, with permuted classes, with numbers that are none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from models.bundle import add_scores, read_bundle, write_bundle
from models.golden import make_golden
from models.predictor import Predictor
from tests.serving import CLASSES


def add_golden(bundle: str, count: int = 16) -> None:
    """Golden images of noise, with the answers that the bundle gives."""
    predictor = Predictor.load(bundle)
    size = predictor.info.preprocess.resize.size
    random = np.random.default_rng(1)
    images = random.integers(0, 255, (count, 1, 1, 3)) * np.ones((1, size, size, 1))
    pixels = (images * random.uniform(0.3, 1, (count, size, size, 1))).astype(np.uint8)
    golden = make_golden(predictor, pixels, [CLASSES[number % 3] for number in range(count)])
    assert golden is not None
    add_scores(bundle, metrics=predictor.info.metrics, golden=golden.entries(), golden_file=golden.file())


def last_bias(tensors: dict[str, torch.Tensor]) -> str:
    return max(name for name in tensors if name.startswith("head.") and name.endswith(".bias"))


def rewrite(source: str, target: str, change: Callable[[dict[str, torch.Tensor]], Any], **metrics: Any) -> str:
    """The same bundle with other weights, consistent in itself, without golden images."""
    info, model = read_bundle(source)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    change(tensors)
    model.load_state_dict(tensors)
    write_bundle(
        target,
        model,
        classes=info.classes,
        preprocess=info.preprocess,
        metrics={"test": metrics} if metrics else {},
        thresholds=info.thresholds,
    )
    return target


def permute(tensors: dict[str, torch.Tensor]) -> None:
    """Each class gets the output of the next one: what a list of classes in another order does to a model."""
    bias = last_bias(tensors)
    for name in (bias, bias.replace(".bias", ".weight")):
        tensors[name].copy_(tensors[name].roll(1, 0))


def make_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[last_bias(tensors)].fill_(float("nan"))
