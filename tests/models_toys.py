"""Small images that a network can learn, for the tests of models/."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from data.collection import Subset
from data.resizing import Resize
from models.preprocess import Preprocess
from models.records import TrainingData
from models.training import TrainingRun

CLASSES = ("auk", "booby", "crane")


def toy_images(n: int = 96, size: int = 32, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """uint8 (n, size, size, 3) of three brightnesses under noise, and which of them, int64 (n,)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    generator.shuffle(labels)
    noise = generator.integers(0, 100, (n, size, size, 3))
    return (noise + 60 * labels[:, None, None, None]).astype(np.uint8), labels.astype(np.int64)


def subset(split: str, rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Subset:
    """Rows of a pack as a split."""
    names = tuple(f"{row}.png" for row in rows)
    return Subset(split, rows.astype(np.int64), labels[rows], names, names)


def toy_data(model: str = "cnn", *, train: int = 64, validation: int = 32, size: int = 32) -> TrainingData:
    """Training and validation rows of toy images, ready for `model`."""
    images, labels = toy_images(train + validation, size)
    rows = np.arange(train + validation)
    return TrainingData(
        images=images,
        train=subset("train", rows[:train], labels),
        validation=subset("validation", rows[train:], labels),
        classes=CLASSES,
        preprocess=Preprocess.for_model(model, Resize(size)),
    )


def settle(network: nn.Module, variance: float = 1.0) -> nn.Module:
    """`network` in eval mode, with BatchNorm's numbers away from 0 and 1: a fresh backbone's features shrink to 1e-10,
    where every difference looks like none, and a forgotten mean would not show."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.8 * variance, 1.2 * variance)
                layer.weight.uniform_(0.8, 1.2)
                layer.bias.normal_(0, 0.1)
    return network.eval()


def write_backbone(path: Path, seed: int = 0) -> str:
    """Random weights of mobilenet_v2, but on disk and with features of a usual size; returns the path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = settle(torchvision.models.mobilenet_v2(weights=None), variance=0.2)
        torch.save(backbone.state_dict(), path)
    return str(path)


def finish(run: TrainingRun) -> TrainingRun:
    """The run, trained to its end."""
    while not run.finished:
        run.run_epoch()
    return run
