"""How an image of any shape becomes a square for a network."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

MIN_SIDE: Final = 8
"""Fewest pixels along a side. Less is a spacer, a tracking pixel or a broken crop, not a photograph."""

_LARGEST: Final = 4096
_ENOUGH: Final = 2
"""How many times `size` a reduced picture still has along its side. Pillow's own thumbnails stop here too
(`reducing_gap`), since the antialiasing of what follows then hides the difference."""

ResizeMode: TypeAlias = Literal["stretch", "crop", "pad"]


@dataclass(frozen=True)
class Resize:
    """How an image of any shape becomes a square of `size` pixels.

    stretch: the whole frame, its aspect lost; crop: the short side to `size`, the middle square kept; pad: the long
    side to `size`, black bars beside it.
    """

    size: int
    mode: ResizeMode = "stretch"
    reduced: bool = True
    """Whether a JPEG much larger than `size` is decoded at a half, quarter or eighth (see `reduction`). A model gets
    its pictures as it was trained on them, so this is part of a bundle; False in those from before there was a choice.
    """

    def __post_init__(self) -> None:
        if not MIN_SIDE <= self.size <= _LARGEST:
            raise ValueError(f"image_size must be from {MIN_SIDE} to {_LARGEST} pixels, got {self.size}")
        if self.mode not in get_args(ResizeMode):
            raise ValueError(f"resize must be one of {', '.join(get_args(ResizeMode))}, got {self.mode!r}")
        if not isinstance(self.reduced, bool):
            raise ValueError(f"reduced must be true or false, got {self.reduced!r}")

    def reduction(self, width: int, height: int) -> int:
        """By how much (1, 2, 4 or 8) a JPEG of this size may be reduced while it is decoded, before it is resized.

        libjpeg then computes fewer pixels, and there are fewer to resize: 1.7 to 2.9 times as fast for cameras' sizes
        (benchmarks/reduced.py), and less memory. Only by what divides both sides: otherwise the last pixels of a row
        would stand for less of the scene than the others. Bundles depend on this rule: another one takes another name.
        """
        if not self.reduced:
            return 1
        resized = max(width, height) if self.mode == "pad" else min(width, height)
        fits = (by for by in (8, 4, 2) if resized >= by * _ENOUGH * self.size and not width % by and not height % by)
        return next(fits, 1)
