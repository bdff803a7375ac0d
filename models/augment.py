"""Random changes to a batch of training images: flip, small rotation, crop, light and colour. Never for validation."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models import seeds

Strength = Literal["off", "light", "strong"]


@dataclass(frozen=True)
class Ranges:
    """How far each change may go."""

    rotation: float  # degrees to either side
    crop: float  # least share of the side that stays visible
    light: float  # brightness and contrast, as a share of 1
    colour: float  # saturation, as a share of 1


# Small on purpose: a camera on a tripod or an ROV is level, and species are told apart by colour.
_RANGES = {"light": Ranges(10, 0.85, 0.1, 0.1), "strong": Ranges(25, 0.6, 0.35, 0.35)}

_PARAMETERS = 8  # flip, angle, zoom, shift x, shift y, brightness, contrast, saturation


def draw(count: int, seed: int, epoch: int, step: int) -> Tensor:
    """Uniform numbers in [0, 1) of shape (count, 8) for one global batch.

    Drawn on the CPU for the whole global batch and sliced by rank afterwards, so that an image is changed in the same
    way whatever the device and the number of workers.
    """
    generator = torch.Generator().manual_seed(seeds.derive(seed, seeds.AUGMENT, epoch, step))
    return torch.rand((count, _PARAMETERS), generator=generator)


def draw_view(count: int, view: int) -> Tensor:
    """The numbers (count, 8) for view `view` (from 0) of all rows of a pack. No seed is in them, so that every trial
    shares what was computed from them."""
    generator = torch.Generator().manual_seed(seeds.derive(0, seeds.VIEW, view))
    return torch.rand((count, _PARAMETERS), generator=generator)


def augment(images: Tensor, draws: Tensor, strength: Strength) -> Tensor:
    """`images` float32 (B, 3, H, W) in 0..1, `draws` (B, 8) as drawn above -> the same shape, range and layout."""
    if strength == "off":
        return images
    ranges = _RANGES[strength]
    draws = draws.to(images.device)
    return _colour(_geometry(images, draws, ranges), draws, ranges)


def _geometry(images: Tensor, draws: Tensor, ranges: Ranges) -> Tensor:
    """Flip, rotation and crop as one affine map, so that the pixels are interpolated once."""
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    angle = (2 * draws[:, 1] - 1) * math.radians(ranges.rotation)
    zoom = ranges.crop + draws[:, 2] * (1 - ranges.crop)
    room = 1 - zoom  # the window stays inside the image, but for the corners that a rotation turns outward
    cosine, sine = zoom * torch.cos(angle), zoom * torch.sin(angle)
    shift_x, shift_y = (2 * draws[:, 3] - 1) * room, (2 * draws[:, 4] - 1) * room
    matrix = torch.stack((cosine * flip, -sine, shift_x, sine * flip, cosine, shift_y), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # Reflection: corners from outside look like more of the scene, not like black wedges that a network could learn.
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    last = images.is_contiguous(memory_format=torch.channels_last)
    return moved.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _colour(images: Tensor, draws: Tensor, ranges: Ranges) -> Tensor:
    """Brightness (a factor), contrast (about the image's mean), saturation (about each pixel's grey), in place."""
    brightness, contrast = (1 + (2 * draws[:, i] - 1).view(-1, 1, 1, 1) * ranges.light for i in (5, 6))
    saturation = 1 + (2 * draws[:, 7] - 1).view(-1, 1, 1, 1) * ranges.colour
    images.mul_(brightness)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images.sub_(mean).mul_(contrast).add_(mean)
    grey = images.mean(dim=1, keepdim=True)
    return images.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 1)
