"""Randomness and noise from integers alone, so that a seed gives the same numbers on every machine and every version.

The generator is splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"). NumPy's own
generators promise the same stream only for the same version, and floating-point noise differs with the processor.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

Choice = TypeVar("Choice")
Ints = npt.NDArray[np.int64]

_MASK: Final = (1 << 64) - 1
_GAMMA: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB

# round(256 sin(2 pi n / 64)) for n = 0..16, written out: the rounding of a library's sine is not ours to trust.
_QUARTER: Final = (0, 25, 50, 74, 98, 121, 142, 162, 181, 198, 213, 226, 237, 245, 251, 255, 256)
TURN: Final = 64
"""Steps in a full turn."""


def sin256(step: int) -> int:
    """256 times the sine of `step` 64ths of a turn."""
    step %= TURN
    half = step % 32
    return (_QUARTER[half] if half <= 16 else _QUARTER[32 - half]) * (1 if step < 32 else -1)


def cos256(step: int) -> int:
    """256 times the cosine of `step` 64ths of a turn."""
    return sin256(step + TURN // 4)


def hash64(*parts: int) -> int:
    """One well-mixed 64-bit number from several."""
    state = 0
    for part in parts:
        state = _mix((state + part * _GAMMA + _GAMMA) & _MASK)
    return state


class Random:
    """A stream of random integers for one seed."""

    def __init__(self, *seed: int) -> None:
        self._state = hash64(*seed)

    def below(self, limit: int) -> int:
        """An integer in 0 … limit-1. (The bias of the remainder, below 2**-50 here, is nothing to a picture.)"""
        self._state = (self._state + _GAMMA) & _MASK
        return _mix(self._state) % limit

    def between(self, low: int, high: int) -> int:
        """An integer in low … high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[Choice]) -> Choice:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Choice]) -> list[Choice]:
        """A new list in random order (Fisher and Yates)."""
        left = list(items)
        for last in range(len(left) - 1, 0, -1):
            other = self.below(last + 1)
            left[last], left[other] = left[other], left[last]
        return left


def lattice(seed: int, x: Ints, y: Ints) -> Ints:
    """A random number 0-255 for each lattice point (x, y), the same whenever it is asked for."""
    with np.errstate(over="ignore"):
        points = x.astype(np.uint64) * np.uint64(_FIRST) + y.astype(np.uint64) * np.uint64(_SECOND)
        mixed = points + np.uint64(hash64(seed))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
        values: Ints = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(56)).astype(np.int64)
        return values


def noise(seed: int, x: Ints, y: Ints, bits: int) -> Ints:
    """Smooth noise 0-255 at the points (x, y): random values on a lattice of 2**bits pixels, interpolated."""
    size = 1 << bits
    cell_x, cell_y, part_x, part_y = x >> bits, y >> bits, x & (size - 1), y & (size - 1)
    ease_x = part_x * part_x * (3 * size - 2 * part_x)  # smoothstep, times size cubed
    ease_y = part_y * part_y * (3 * size - 2 * part_y)
    whole = size**3
    upper = lattice(seed, cell_x, cell_y) * (whole - ease_x) + lattice(seed, cell_x + 1, cell_y) * ease_x
    lower = lattice(seed, cell_x, cell_y + 1) * (whole - ease_x) + lattice(seed, cell_x + 1, cell_y + 1) * ease_x
    values: Ints = (upper * (whole - ease_y) + lower * ease_y) // (whole * whole)
    return values


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)
