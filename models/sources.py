"""Where a batch's inputs come from: the pack's pixels, or the features that a frozen base gave for them."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.augment import Strength, augment
from models.feeding import Rows, to_device
from models.preprocess import Preprocess

Array = np.ndarray[Any, np.dtype[Any]]


class Source(Protocol):
    """Rows of the pack -> inputs of the trained part, on the run's device."""

    chunk: int
    """How many rows to ask for at a time where nothing else decides it."""

    def training(self, rows: Array, draws: Tensor | None, epoch: int) -> Tensor:
        """Inputs to learn from in `epoch` (from 1); `draws` (B, 8) are the random numbers of the augmentation, None for
        none."""

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

    def training(self, rows: Array, draws: Tensor | None, epoch: int) -> Tensor:
        return self.batch(rows, draws)

    def plain(self, rows: Array) -> Tensor:
        return self.batch(rows, None)

    def batch(self, rows: Array, draws: Tensor | None) -> Tensor:
        """Rows of the pack as they are, or augmented by `draws` (B, 8)."""
        batch = self._preprocess.to_unit(self._images[rows], self._device, self._layout)
        if draws is not None:
            batch = augment(batch, draws, self._strength)
        return self._preprocess.normalise_(batch)


class KeptFeatures:
    """Features (B, F) out of the files that `models.features` keeps."""

    chunk = 1024

    def __init__(
        self, plain: Array, device: torch.device, training_rows: Array | None = None, views: Sequence[Array] = ()
    ) -> None:
        """`plain` has every row of the pack, each of `views` (if there are any) the `training_rows` in their order."""
        self._plain, self._views, self._device = np.asarray(plain), [np.asarray(view) for view in views], device
        self._places = np.zeros(len(plain), np.int64)
        if training_rows is not None:
            self._places[training_rows] = np.arange(len(training_rows))

    def training(self, rows: Array, draws: Tensor | None, epoch: int) -> Tensor:
        if not self._views:
            return self.plain(rows)
        # One view an epoch, in turn: an image then meets each equally often, and a run shorter than the number of views
        # needs no more of them than it has epochs. Mixing them within a batch would gain nothing, since each image of a
        # view was changed at random already. The seed plays no part, or every seed would want other views.
        return to_device(self._views[(epoch - 1) % len(self._views)][self._places[rows]], self._device)

    def plain(self, rows: Array) -> Tensor:
        return to_device(self._plain[rows], self._device)
