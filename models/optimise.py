"""What is tuned about training, the optimisers, and the learning rate over time."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from data.checks import above_zero, at_least, one_of


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained."""

    learning_rate: float = 0.001
    """Step size of the optimiser."""

    epochs: int = 0
    """Most passes over the training images, early stopping may end before; 0: 10, or 30 over a frozen base, whose
    passes cost little."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """How gradients become steps."""

    momentum: float = 0.9
    """Share of the last step that is kept; sgd only."""

    schedule: Literal["constant", "keras-time"] = "constant"
    """Learning rate over time. keras-time is learning_rate / (1 + 0.1 t) after t batches."""

    weight_decay: float = 0.0
    """Pull of the weights towards zero: added to the gradient by adam and sgd, apart from it by adamw."""

    batch_size: int = 32
    """Images a step, over all workers together."""

    augment: Literal["off", "light", "strong"] = "off"
    """Random flip, rotation, crop and colour on the training images only."""

    views: int = 8
    """Augmented versions of each training image over a frozen base: each costs one pass over the base, kept for all
    trials, and epoch after epoch takes the next. Where the base learns too, every epoch draws anew."""

    balance: Literal["off", "weights", "sampling"] = "off"
    """For uneven classes: weights counts rare classes more in the loss, sampling draws them more often."""

    patience: int = 5
    """Epochs without a better validation loss before training stops; 0 never stops early."""

    seed: int = 0
    """Start of every random number: first weights, order of images, dropout, augmentation."""

    def __post_init__(self) -> None:
        one_of(
            self,
            optimizer=("adam", "adamw", "sgd"),
            schedule=("constant", "keras-time"),
            augment=("off", "light", "strong"),
            balance=("off", "weights", "sampling"),
        )
        at_least(self, epochs=0, batch_size=2, views=1, patience=0, seed=0, weight_decay=0)
        above_zero(self, "learning_rate")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be >= 0 and < 1, got {self.momentum}")

    def resolved(self, *, frozen: bool) -> "TrainConfig":
        """With the number of epochs filled in; `frozen` says whether only a head is trained."""
        return replace(self, epochs=self.epochs or (30 if frozen else 10))


def make_optimizer(
    config: TrainConfig, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser, in its fused form where torch has one: one pass over the weights instead of one per operation."""
    rate, decay, fused = config.learning_rate, config.weight_decay, device.type in ("cpu", "cuda")
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=fused)


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """The rate for a batch that `step` batches came before.

    keras-time is Keras 2's `decay=0.1`: lr / (1 + 0.1 t) after t batches. It is a schedule and no weight decay;
    after 100 batches the rate is an eleventh.
    """
    if config.schedule == "keras-time":
        return config.learning_rate / (1 + 0.1 * step)
    return config.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
