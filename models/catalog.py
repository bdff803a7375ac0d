"""The networks: the story's CNN, and torchvision's backbones with a head of our own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.checks import at_least, one_of
from data.errors import UserError
from models import weights

ARCHITECTURES = ("cnn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2")

# Least image side. cnn: two unpadded 3x3 convolutions and two halvings leave one pixel of 10. The backbones halve five
# times; below 32 their last stages would see padding only.
_LEAST_SIZE = {"cnn": 10}
_LEAST_SIZE_BACKBONE = 32

# Share of the mean deviation that a feature's own deviation counts as at least.
_LEAST_DEVIATION = 0.1

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ModelConfig:
    """Which network, where its weights come from, and the size of its head."""

    model: Literal["cnn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"] = "cnn"
    """The network. cnn is small and trained from nothing; the others are torchvision backbones with a new head."""

    weights: str = ""
    """Where the backbone's weights come from: torchvision (downloads once), none, a file, or an s3:// address. Left
    empty it is none for cnn and torchvision for the others."""

    base: Literal["frozen", "finetune"] = "frozen"
    """frozen trains the head only, on features computed once per image; finetune trains every weight. cnn is always
    trained whole."""

    dense_units: int = 0
    """Width of the dense layer between the features and the classes; 0: 32 for cnn, 256 for the backbones."""

    dropout: float = 0.2
    """Share of the dense layer's outputs that are dropped while training, 0 to below 1."""

    def __post_init__(self) -> None:
        one_of(self, model=ARCHITECTURES, base=("frozen", "finetune"))
        at_least(self, dense_units=0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {self.dropout}")
        if self.model == "cnn" and self.source != "none":
            raise ValueError(f"cnn has no pretrained weights, got weights {self.weights}; use none or leave it empty")
        if self.frozen and self.source == "none":
            raise ValueError(
                f"{self.model} with weights none and a frozen base would keep random features; "
                "use base finetune, or give weights"
            )

    @property
    def source(self) -> str:
        """`weights` with its default filled in."""
        return self.weights or ("none" if self.model == "cnn" else "torchvision")

    def resolved(self) -> "ModelConfig":
        """With the width of the dense layer filled in. 256 did better than 32 over frozen features of few images."""
        return replace(self, dense_units=self.dense_units or (32 if self.model == "cnn" else 256))

    @property
    def frozen(self) -> bool:
        """Whether the base keeps its weights. Never so for cnn."""
        return self.model != "cnn" and self.base == "frozen"


def least_size(model: str) -> int:
    """The smallest image side in pixels that `model` takes."""
    return _LEAST_SIZE.get(model, _LEAST_SIZE_BACKBONE)


def _check_size(model: str, image_size: int) -> None:
    if image_size < least_size(model):
        raise UserError(
            f"images of {image_size} pixels are too small for {model}, which needs at least {least_size(model)}; "
            f"give --image-size {least_size(model)} or more"
        )


def _cnn_base() -> nn.Module:
    """The story's convolutions, no padding. The story has ReLU before each pooling; max and ReLU commute (both are
    monotonic), so ReLU after it is the same function with a quarter of the elements to touch."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()
    )


def _backbone(model: str) -> nn.Module:
    # torchvision takes a second or two of CPU to import, in every worker: the cnn does without it.
    import torchvision

    base: nn.Module = torchvision.models.get_model(model, weights=None)
    # The classifier gives way to nothing, so the state dict keeps torchvision's names and files load as they are.
    setattr(base, weights.classifier_name(model), nn.Identity())
    return base


def feature_count(model: str, image_size: int) -> int:
    """Length of the feature vector that the base of `model` gives for images of this side."""
    _check_size(model, image_size)
    if model == "cnn":
        return int(32 * (((image_size - 2) // 2 - 2) // 2) ** 2)
    return {"resnet18": 512, "resnet34": 512, "mobilenet_v2": 1280}.get(model, 2048)


class Standardise(nn.Module):
    """(x - mean) / deviation for each feature, over the training images: what a frozen base gives has a scale of its
    own, on which one learning rate fits some features and not others. Numbers of the training set, not weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def fit(self, features: Array) -> None:
        """Take mean and deviation from `features` (n, F)."""
        mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        # A feature that hardly ever fires on these images must not be blown up when it does on another.
        least = max(_LEAST_DEVIATION * float(deviation.mean()), 1e-12)
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(1 / np.maximum(deviation, least)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, F)."""
        return (features - self.mean) * self.scale


def build_head(config: ModelConfig, *, classes: int, image_size: int) -> nn.Sequential:
    """Features (B, F) -> logits (B, classes): dense, ReLU, dropout, dense; over a frozen base the features are
    standardised before. First weights from torch's global generator."""
    if classes < 2:
        raise UserError(f"a classifier needs at least 2 classes, found {classes}; give images of more than one label")
    features = feature_count(config.model, image_size)
    return nn.Sequential(
        *([Standardise(features)] if config.frozen else []),
        nn.Linear(features, config.dense_units),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.dense_units, classes),
    )


def build_base(config: ModelConfig, *, cache_dir: str = "", load_weights: bool = True) -> nn.Module:
    """Images (B, 3, H, W) -> features (B, F), channels last, with the weights that `config` names (or random)."""
    if config.model == "cnn":
        base = _cnn_base()
    elif not load_weights or config.source == "none":
        base = _backbone(config.model)
    else:
        with torch.device("meta"):  # no point in drawing random weights that are replaced at once
            base = _backbone(config.model)
        weights.load_into(base, config.model, config.source, cache_dir)
    return base.to(memory_format=torch.channels_last)


class Classifier(nn.Module):
    """A base (images -> features) and a head (features -> logits)."""

    def __init__(self, config: ModelConfig, base: nn.Module, head: nn.Module, *, classes: int, image_size: int) -> None:
        super().__init__()
        self.config, self.classes, self.image_size = config, classes, image_size
        self.base, self.head = base, head
        if config.frozen:
            self.base.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """`images` float32 (B, 3, H, W), normalised -> logits (B, classes)."""
        if self.config.frozen:
            with torch.no_grad():
                features = self.base(images)
        else:
            features = self.base(images)
        logits: Tensor = self.head(features)
        return logits

    def logits_of_features(self, features: Array) -> Array:
        """Logits float64 (n, classes) of the base's outputs float32 (n, F), on the CPU, in eval mode."""
        self.eval()
        with torch.inference_mode():
            logits: Array = self.head(torch.from_numpy(np.array(features))).double().numpy()
        return logits

    def train(self, mode: bool = True) -> "Classifier":
        """As in torch, but a frozen base stays in eval mode: its BatchNorm must not follow the training images."""
        super().train(mode)
        if self.config.frozen:
            self.base.eval()
        return self

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that an optimiser should see."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)


def build(
    config: ModelConfig, *, classes: int, image_size: int, cache_dir: str = "", load_weights: bool = True
) -> Classifier:
    """The whole network, channels last. `load_weights=False` leaves a backbone random (its weights come later).

    UserError if the images are too small for the architecture or the weights do not fit or cannot be had.
    """
    config = config.resolved()
    head = build_head(config, classes=classes, image_size=image_size)
    base = build_base(config, cache_dir=cache_dir, load_weights=load_weights)
    return Classifier(config, base, head, classes=classes, image_size=image_size)


def parameter_count(model: nn.Module) -> int:
    """Number of weights, trained or frozen."""
    return sum(parameter.numel() for parameter in model.parameters())
