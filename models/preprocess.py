"""Pixels to the network's input: the same few operations in training, in the feature pass and in the predictor."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.resizing import Resize

# Mean and standard deviation of ImageNet's training set in RGB over 0..1: what torchvision's weights were trained with.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@functools.lru_cache(maxsize=16)
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """(1, 3, 1, 1), made once: a copy from main memory to a GPU in each batch would make both wait."""
    with torch.inference_mode(False):  # made in whichever mode comes first, used in all
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


@functools.lru_cache(maxsize=16)
def _per_channel_array(values: tuple[float, float, float]) -> np.ndarray[Any, Any]:
    """The same for numpy."""
    return np.array(values, np.float32).reshape(1, 3, 1, 1)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes input: resized, divided by 255, then (x - mean) / std for each of R, G, B."""

    resize: Resize
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError(f"mean and std need 3 finite numbers each and std > 0, got {self.mean} and {self.std}")

    @classmethod
    def for_model(cls, model: str, resize: Resize) -> "Preprocess":
        """x / 255 for cnn (as in the story), ImageNet's mean and std for the backbones."""
        return cls(resize) if model == "cnn" else cls(resize, _IMAGENET_MEAN, _IMAGENET_STD)

    def to_unit(
        self,
        images: "np.ndarray[Any, Any] | Tensor",
        device: str | torch.device = "cpu",
        layout: torch.memory_format = torch.channels_last,
    ) -> Tensor:
        """uint8 (B, H, W, 3), already resized -> float32 (B, 3, H, W) in 0..1, laid out as `layout`.

        The pixels travel to the device as bytes, and one new tensor is made; the rest happens in place.
        """
        if isinstance(images, np.ndarray):
            # A read-only memmap would make torch warn; rows gathered from one are a fresh, writable array.
            images = torch.from_numpy(images if images.flags.writeable else images.copy())
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
        # (B, H, W, 3) seen as (B, 3, H, W) *is* channels last: no copy but the conversion to float.
        return images.to(device).permute(0, 3, 1, 2).to(torch.float32, memory_format=layout).mul_(1 / 255)

    def normalise_(self, batch: Tensor) -> Tensor:
        """(x - mean) / std in place."""
        if self.mean != (0.0, 0.0, 0.0):
            batch.sub_(_per_channel(self.mean, batch.device))
        if self.std != (1.0, 1.0, 1.0):
            batch.div_(_per_channel(self.std, batch.device))
        return batch

    def to_batch(self, images: "np.ndarray[Any, Any] | Tensor", device: str | torch.device = "cpu") -> Tensor:
        """uint8 (B, H, W, 3), already resized -> float32 (B, 3, H, W), channels last."""
        return self.normalise_(self.to_unit(images, device))

    def to_array(self, images: "Sequence[np.ndarray[Any, Any]] | np.ndarray[Any, Any]") -> np.ndarray[Any, Any]:
        """The numbers of `to_batch` bit for bit, in numpy: B of uint8 (H, W, 3) -> float32 (B, 3, H, W), contiguous.

        For a network that torch does not run: torch's threads stay awake for milliseconds after such a conversion, on
        the cores that the other engine's threads work on (8 ms of CPU, measured, for 0.3 ms of work on four images).
        """
        if not len(images) or any(image.dtype != np.uint8 or image.shape[2:] != (3,) for image in images):
            raise ValueError("images must be one or more of uint8 (H, W, 3), all of one size")
        batch = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
        for place, image in enumerate(images):
            batch[place] = image.transpose(2, 0, 1)
        batch *= np.float32(1 / 255)
        if self.mean != (0.0, 0.0, 0.0):
            batch -= _per_channel_array(self.mean)
        if self.std != (1.0, 1.0, 1.0):
            batch /= _per_channel_array(self.std)
        return batch

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready. "reduced" is there only where it is true: the ids of older bundles stay what they were."""
        resize = asdict(self.resize)
        if not resize["reduced"]:
            del resize["reduced"]
        return {"resize": resize, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The reverse of `as_dict`. KeyError, TypeError or ValueError if it is not one."""
        red, green, blue = (float(value) for value in values["mean"])
        std_red, std_green, std_blue = (float(value) for value in values["std"])
        resize = Resize(**{"reduced": False, **values["resize"]})  # older bundles do not say it, and did not
        return cls(resize, (red, green, blue), (std_red, std_green, std_blue))
