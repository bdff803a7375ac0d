"""How sure a model is on the whole: how many images had a top probability of 0 to 0.05, 0.05 to 0.1, and so on."""

from collections.abc import Iterable
from typing import Final

BINS: Final = 20
"""Equal ones, over 0 to 1."""


def bin_of(probability: float) -> int:
    """The bin, 0 to 19, of a probability: a lower edge belongs to its bin, and 1 to the last one."""
    return min(int(probability * BINS), BINS - 1)


def histogram(probabilities: Iterable[float]) -> list[int]:
    """How many of `probabilities` (0 to 1) are in each bin."""
    counts = [0] * BINS
    for probability in probabilities:
        counts[bin_of(probability)] += 1
    return counts
