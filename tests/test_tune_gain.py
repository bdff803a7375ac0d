"""What the search gained, in numbers and in words that say no more than they show."""

from typing import Any

import pytest

from models.metrics import paired_difference
from tune.gain import words


def gained(difference: float, low: float, high: float) -> dict[str, Any]:
    return {
        "n": 120,
        "difference": difference,
        "interval": [low, high],
        "best_accuracy": 0.8,
        "default_accuracy": 0.8 - difference,
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (gained(0.1, 0.02, 0.18), "the search gained +0.100 test accuracy, 0.800 against 0.700"),
        (gained(0.1, -0.02, 0.22), "nothing that can be told from chance: +0.100"),
        (gained(-0.1, -0.18, -0.02), "trial 3 is worse than the default hyperparameters: -0.100"),
        (None, "gave no finished trial to compare with"),
    ],
)
def test_the_verdict_says_what_the_interval_shows(values: dict[str, Any] | None, said: str) -> None:
    assert said in words(values, 3, 3)


def test_the_defaults_as_the_best_are_said_to_be() -> None:
    assert "gained nothing: no trial beat the default" in words(None, 0, 0)
    assert words(None, 0, 2) == "the picked trial has the default hyperparameters; trial 2 is more accurate"


def test_a_paired_difference_and_its_interval() -> None:
    """By hand: b = 12.5, c = 4.5, N = 102; centre 8 / 102, half 1.96 sqrt(17 - 64 / 102) / 102."""
    difference, low, high = paired_difference(12, 4, 100)
    assert difference == pytest.approx(0.08)
    assert (low, high) == pytest.approx((0.00065, 0.15621), abs=1e-4)
    assert paired_difference(0, 0, 50)[1] < 0 < paired_difference(0, 0, 50)[2]
    assert paired_difference(4, 12, 100) == pytest.approx((-difference, -high, -low))
    with pytest.raises(ValueError, match="counts of at most n"):
        paired_difference(3, 3, 5)
