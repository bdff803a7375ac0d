"""How a GPU is kept fed: the rows that a run uses lie on it as bytes if they fit, else follow each other from pinned
memory; either way no batch makes it wait."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

# Share of the device's free memory that pixels may take; the rest is for activations, gradients and the allocator.
_SHARE = 0.5
_UPLOAD = 256  # rows at a time, so that the pack is never copied whole in main memory


class Rows(Protocol):
    """Something that gives rows of a pack, uint8 (B, H, W, 3), when indexed by their numbers, int64 (B,)."""

    def __getitem__(self, rows: Any, /) -> Any: ...


class Resident:
    """Some rows of a pack, all of them on the device: batches are gathered there."""

    def __init__(self, images: Array, rows: Array, device: torch.device) -> None:
        self._rows, self._device = np.unique(rows), device
        self._pixels = torch.empty((len(self._rows), *images.shape[1:]), dtype=torch.uint8, device=device)
        for start in range(0, len(self._rows), _UPLOAD):
            part = self._rows[start : start + _UPLOAD]
            self._pixels[start : start + len(part)].copy_(torch.from_numpy(np.array(images[part])))

    def __getitem__(self, rows: Array) -> Tensor:
        """uint8 (B, H, W, 3) on the device. AssertionError for a row that is not among those given."""
        places = np.searchsorted(self._rows, rows).clip(max=len(self._rows) - 1)
        assert np.array_equal(self._rows[places], rows), "rows beyond those that were made resident"
        return self._pixels.index_select(0, to_device(places, self._device))


class Streamed:
    """Rows gathered in main memory, whose copy to the device does not wait for what the device is doing.

    Nor does the loop: while the GPU works on one batch, the next is gathered and its copy queued. torch keeps pinned
    memory from being used again before its copy is done.
    """

    def __init__(self, images: Array, device: torch.device) -> None:
        self._images, self._device = images, device

    def __getitem__(self, rows: Array) -> Tensor:
        """uint8 (B, H, W, 3) on the device."""
        return to_device(self._images[rows], self._device)


def to_device(array: Array, device: torch.device) -> Tensor:
    """A fresh, writable `array` as a tensor on `device`; the copy to a GPU is queued and not waited for."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _free_bytes(device: torch.device) -> int:
    torch.cuda.empty_cache()  # what an earlier trial of this process left to torch's allocator is free too
    return int(torch.cuda.mem_get_info(device)[0])


def near(
    images: Array, rows: Array, device: torch.device, free_bytes: Callable[[torch.device], int] = _free_bytes
) -> Rows:
    """`images` (N, H, W, 3) for a run on `device` that uses `rows` of them: themselves on a CPU, resident on a GPU if
    they take at most half of its free memory, streamed to it if more."""
    if device.type != "cuda":
        return images
    needed = len(np.unique(rows)) * int(np.prod(images.shape[1:]))
    if needed <= _SHARE * free_bytes(device):
        return Resident(images, rows, device)
    return Streamed(images, device)
