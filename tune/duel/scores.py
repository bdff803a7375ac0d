"""What a duel shows: paired differences of test accuracy, over seeds and over images, and when they say enough."""

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tune.duel.duelists import SEEDS

# Two-sided 95 % point of Student's t with SEEDS - 1 = 4 degrees of freedom; NIST/SEMATECH e-Handbook of Statistical
# Methods, section 1.3.6.7.2.
_T_95 = 2.776
_Z_95 = 1.96

Answers = NDArray[np.bool_]
Verdict = Literal["first", "second", "cannot tell"]
Interval = tuple[float, float]


def over_seeds(differences: NDArray[np.float64]) -> Interval:
    """95 % interval of the mean of `SEEDS` paired differences: mean +- t s / sqrt(n), Student's t.

    It covers what another seed (first weights, order of images, dropout) would change on these same test images.
    """
    if len(differences) != SEEDS:
        raise ValueError(f"the t value is that of {SEEDS} differences, got {len(differences)}")
    half = _T_95 * float(differences.std(ddof=1)) / float(np.sqrt(len(differences)))
    return float(differences.mean()) - half, float(differences.mean()) + half


def over_images(differences: NDArray[np.float64]) -> Interval:
    """95 % interval of the mean of paired differences, one an image: each the mean over the seeds, in [-1, 1].

    Averaged and not pooled, because the answers of several seeds to one image are not independent of each other: pooled
    they would pretend to five times as many images. With one seed it is `models.metrics.paired_difference`, Agresti and
    Min's interval (half an image more in each of the four cells), whose sums of won and lost images become sums of d
    and d^2 here. It covers other images like these; images of one group are alike, so over new groups it is wider.
    """
    count = len(differences) + 2
    total, squares = float(differences.sum()), float((differences**2).sum()) + 1
    half = _Z_95 * float(np.sqrt(squares - total**2 / count)) / count
    return max(-1.0, total / count - half), min(1.0, total / count + half)


@dataclass(frozen=True)
class Pair:
    """Two contestants; differences are test accuracy of `first` minus that of `second`, 0..1, None where one of them
    has none. `reason` says why one lost without a comparison."""

    first: str
    second: str
    verdict: Verdict
    difference: float | None = None
    by_seed: tuple[float, ...] = ()
    seeds_interval: Interval | None = None
    images_interval: Interval | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare(first: str, ours: Answers, second: str, theirs: Answers) -> Pair:
    """Answers are (seeds, images), the same seeds and images for both.

    One is better only where both intervals leave 0 out: the seeds alone say nothing of other images, nor the images of
    other seeds. Each interval is a 95 % one by itself, not corrected for how many pairs a duel has.
    """
    paired = ours.astype(np.float64) - theirs.astype(np.float64)
    by_seed = paired.mean(axis=1)
    seeds, images = over_seeds(by_seed), over_images(paired.mean(axis=0))
    verdict: Verdict = "cannot tell"
    if min(seeds[0], images[0]) > 0:
        verdict = "first"
    elif max(seeds[1], images[1]) < 0:
        verdict = "second"
    return Pair(first, second, verdict, float(paired.mean()), tuple(map(float, by_seed)), seeds, images)


def all_pairs(answers: dict[str, Answers], failures: dict[str, str]) -> list[Pair]:
    """Every contestant against each that was named after it. `failures` holds, for each in order of naming, why it has
    no answers, "" for one that has."""
    return [_pair(first, second, answers, failures) for first, second in combinations(failures, 2)]


def _pair(first: str, second: str, answers: dict[str, Answers], failures: dict[str, str]) -> Pair:
    if not failures[first] and not failures[second]:
        return compare(first, answers[first], second, answers[second])
    if failures[first] and failures[second]:
        return Pair(first, second, "cannot tell", reason=f"neither could be trained: {failures[first]}")
    loser = first if failures[first] else second
    return Pair(first, second, "second" if loser == first else "first", reason=failures[loser])


def winner(pairs: list[Pair]) -> str:
    """The contestant that is better than every other; "" where there is none."""
    names = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
    beaten = [(pair.first, pair.verdict == "first") for pair in pairs]
    beaten += [(pair.second, pair.verdict == "second") for pair in pairs]
    return next((name for name in names if all(won for who, won in beaten if who == name)), "")
