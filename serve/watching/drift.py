"""Whether the endpoint still sees what it was tried on: the confidences served against those on the validation images.

No labels come in with the images, so accuracy cannot be watched; the network's own probabilities can, and in a
comparison of such alarms they were what told a changed input best (Rabanser, Günnemann and Lipton: Failing Loudly: An
Empirical Study of Methods for Detecting Dataset Shift, NeurIPS 2019). What is compared is the probability of the
answered label, in equal bins. It is an alarm and no score: accuracy may fall while the confidences stay as they were.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.confidences import BINS

WINDOW: Final = 1000
"""Predictions that are looked at: the last ones."""
ENOUGH: Final = 100
"""Fewer say nothing."""
_DRAWS: Final = 1000


class Drift:
    """The last confidences of one model, and how far they are from `expected`: the counts of the validation images by
    bin, or an empty list where the bundle does not know them."""

    def __init__(self, expected: Sequence[float] = ()) -> None:
        self._expected = tuple(expected) if len(expected) == BINS and sum(expected) > 0 else ()
        self._last: deque[int] = deque(maxlen=WINDOW)
        self._counts = [0] * BINS

    def add(self, place: int) -> None:
        """One more prediction, by its bin."""
        if len(self._last) == WINDOW:
            self._counts[self._last[0]] -= 1
        self._last.append(place)
        self._counts[place] += 1

    def sample(self) -> "Sample | None":
        """What there is to compare; None where it is too little to say anything."""
        if len(self._last) < ENOUGH or not self._expected:
            return None
        return Sample(tuple(self._counts), self._expected)


@dataclass(frozen=True)
class Sample:
    """The confidences served and those on the validation images, counted by bin."""

    served: tuple[float, ...]
    expected: tuple[float, ...]

    def distance(self) -> float:
        """0 where the two agree, 1 where they share nothing."""
        return total_variation(self.served, self.expected)

    def by_chance(self) -> float:
        """What `distance` stays below in 99 of 100 cases where nothing has changed."""
        return chance_limit(self.served, self.expected)


def total_variation(one: Sequence[float], other: Sequence[float]) -> float:
    """The share of one sample that would have to move to other bins to make it the other: half of the summed
    differences of the shares (Levin, Peres and Wilmer: Markov Chains and Mixing Times, proposition 4.2).

    The population stability index, the usual number, divides by each bin's share: the bins below 1 / classes are always
    empty, which makes it infinite, and by chance alone it is about bins x (1/n + 1/m), so that its rule of thumb (0.25
    is a shift) is met by 1,000 predictions of 60 validation images where nothing has changed at all (Yurdakul and
    Naranjo: Statistical properties of the population stability index, Journal of Risk Model Validation 14, 2020).
    """
    n, m = sum(one), sum(other)
    return sum(abs(a / n - b / m) for a, b in zip(one, other, strict=True)) / 2


def chance_limit(one: Sequence[float], other: Sequence[float]) -> float:
    """What `total_variation` of two samples of one distribution stays below in 99 of 100 cases.

    Found by drawing two samples of these sizes a thousand times from the shares of both together; a formula with normal
    numbers in the bins' place is off where few bins hold nearly all, as with a sure network. It takes images for
    independent: the frames of one video are not, and wander more.
    """
    n, m = round(sum(one)), round(sum(other))
    shares = (np.asarray(one) + np.asarray(other)) / (n + m)
    random = np.random.default_rng(0)  # the same counts give the same answer
    differences = random.multinomial(n, shares, _DRAWS) / n - random.multinomial(m, shares, _DRAWS) / m
    return float(np.quantile(np.abs(differences).sum(axis=1) / 2, 0.99))
