"""Whether the confidences served are still those of the validation images, and what chance alone does to that."""

import numpy as np
import pytest

from models.confidences import BINS, bin_of
from serve.watching.drift import ENOUGH, WINDOW, Drift, chance_limit, total_variation

SURE = (0,) * 10 + (1, 1, 1, 2, 2, 3, 4, 6, 10, 40)
UNSURE = (0,) * 5 + (10, 20, 30, 20, 10) + (0,) * 10


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ((1, 1), (1, 1), 0.0),
        ((1, 1), (50, 50), 0.0),
        ((1, 0), (0, 7), 1.0),
        ((3, 1), (1, 1), 0.25),
        ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5), 0.3),
    ],
)
def test_the_distance_is_the_share_that_would_have_to_move(
    one: tuple[float, ...], other: tuple[float, ...], distance: float
) -> None:
    assert total_variation(one, other) == pytest.approx(distance)
    assert total_variation(other, one) == pytest.approx(distance)


@pytest.mark.parametrize("shares", [(1,) * BINS, SURE, (0,) * 18 + (3, 97)], ids=["even", "sure", "surest"])
@pytest.mark.parametrize(("n", "m"), [(1000, 60), (1000, 2000), (ENOUGH, 50)])
def test_unchanged_samples_stay_below_what_chance_does(shares: tuple[int, ...], n: int, m: int) -> None:
    """In about 99 of 100 cases: with the limit taken from the true shares, the cases are independent of it."""
    random = np.random.default_rng(7)
    share = np.array(shares) / sum(shares)
    limit = chance_limit((share * n).tolist(), (share * m).tolist())
    draws = ((random.multinomial(n, share).tolist(), random.multinomial(m, share).tolist()) for _ in range(2000))
    distances = [total_variation(one, other) for one, other in draws]
    above = float(np.mean(np.array(distances) > limit))
    assert 0.001 <= above <= 0.025


def test_few_validation_images_make_a_wide_margin() -> None:
    """Where the usual number, the population stability index, would cry wolf (it has no margin at all)."""
    assert chance_limit([50] * BINS, [3] * BINS) > 0.25
    assert chance_limit([50] * BINS, [250] * BINS) < 0.1


def filled(expected: tuple[int, ...], served: tuple[int, ...], count: int, *, drift: Drift | None = None) -> Drift:
    drift = drift or Drift(expected)
    share = np.array(served) / sum(served)
    for place in np.random.default_rng(3).choice(BINS, count, p=share):
        drift.add(int(place))
    return drift


def test_the_same_images_do_not_drift_and_others_do() -> None:
    same, other = filled(SURE, SURE, WINDOW).sample(), filled(SURE, UNSURE, WINDOW).sample()
    assert same is not None
    assert other is not None
    assert same.distance() < same.by_chance()
    assert other.distance() == pytest.approx(1.0)
    assert other.distance() > 2 * other.by_chance()


def test_nothing_is_said_of_too_few_predictions_or_without_a_histogram_to_compare_with() -> None:
    assert filled(SURE, SURE, ENOUGH - 1).sample() is None
    assert filled(SURE, SURE, ENOUGH).sample() is not None
    for unknown in ((), (1, 2, 3), (0,) * BINS):
        assert filled(unknown, SURE, WINDOW).sample() is None


def test_only_the_last_predictions_count() -> None:
    drift = filled(SURE, UNSURE, 3 * WINDOW)
    drift = filled(SURE, SURE, WINDOW, drift=drift)
    sample = drift.sample()
    assert sample is not None
    assert sum(sample.served) == WINDOW
    assert sample == filled(SURE, SURE, WINDOW).sample()


@pytest.mark.parametrize(
    ("probability", "place"), [(0.0, 0), (0.0499, 0), (0.05, 1), (0.5, 10), (0.999, 19), (1.0, 19)]
)
def test_bins_are_those_of_numpy(probability: float, place: int) -> None:
    assert bin_of(probability) == place
    assert np.histogram([probability], BINS, (0, 1))[0][place] == 1
