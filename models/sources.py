"""Where a batch's inputs come from: the pack's pixels, a frozen base over them, or features kept from before."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.augment import Strength, augment
from models.feeding import Rows
from models.preprocess import Preprocess

Array = np.ndarray[Any, np.dtype[Any]]


class Source(Protocol):
    """Rows of the pack -> inputs of the trained part, on the run's device."""

    chunk: int
    """How many rows to ask for at a time where nothing else decides it."""

    def training(self, rows: Array, draws: Tensor | None) -> Tensor:
        """Inputs to learn from; `draws` (B, 8) are the random numbers of the augmentation, None for none."""

    def plain(self, rows: Array) -> Tensor:
        """Inputs to be scored on: never augmented."""


class Images:
    """Normalised pixels, float32 (B, 3, H, W)."""

    chunk = 32

    def __init__(
        self,
        images: Rows,
        preprocess: Preprocess,
        device: torch.device,
        strength: Strength,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self._images, self._preprocess, self._device, self._strength = images, preprocess, device, strength
        self._layout = layout

    def training(self, rows: Array, draws: Tensor | None) -> Tensor:
        batch = self._preprocess.to_unit(self._images[rows], self._device, self._layout)
        if draws is not None:
            batch = augment(batch, draws, self._strength)
        return self._preprocess.normalise_(batch)

    def plain(self, rows: Array) -> Tensor:
        return self._preprocess.to_batch(self._images[rows], self._device, self._layout)


class FrozenBase:
    """Features of a frozen base: anew each time for augmented images, kept ones for the images as they are."""

    def __init__(self, base: nn.Module, images: Images, kept: "KeptFeatures") -> None:
        self._base, self._images, self._kept = base.requires_grad_(False).eval(), images, kept
        self.chunk = kept.chunk

    def training(self, rows: Array, draws: Tensor | None) -> Tensor:
        with torch.no_grad():
            features: Tensor = self._base(self._images.training(rows, draws))
        return features

    def plain(self, rows: Array) -> Tensor:
        return self._kept.plain(rows)


class KeptFeatures:
    """Features (B, F) out of the file that `models.features` keeps."""

    chunk = 1024

    def __init__(self, features: Array, device: torch.device) -> None:
        self._features, self._device = features, device

    def training(self, rows: Array, draws: Tensor | None) -> Tensor:
        return self.plain(rows)

    def plain(self, rows: Array) -> Tensor:
        return torch.from_numpy(self._features[rows]).to(self._device)
