"""What a duel shows: intervals over seeds and images, verdicts, and the words for them."""

from typing import Any

import numpy as np
import pytest

from models.metrics import paired_difference
from tune.duel.scores import Pair, all_pairs, compare, over_images, over_seeds, winner
from tune.duel.words import words


def test_the_interval_over_seeds_is_students() -> None:
    """Mean 0.3, s = sqrt(0.025), half width 2.776 s / sqrt(5) = 0.19629."""
    assert over_seeds(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx((0.10371, 0.49629), abs=1e-5)
    assert over_seeds(np.full(5, 0.25)) == (0.25, 0.25)
    with pytest.raises(ValueError, match="that of 5 differences, got 4"):
        over_seeds(np.zeros(4))


@pytest.mark.parametrize(("won", "lost", "n"), [(0, 0, 5), (7, 2, 30), (3, 3, 6), (40, 0, 40)])
def test_the_interval_over_images_is_that_of_paired_answers(won: int, lost: int, n: int) -> None:
    """With answers that are the same from every seed; what differs from seed to seed makes it narrower, not wider."""
    differences = np.zeros(n)
    differences[:won], differences[won : won + lost] = 1, -1
    assert over_images(differences) == pytest.approx(paired_difference(won, lost, n)[1:])


def test_seeds_that_disagree_on_an_image_count_as_one_image() -> None:
    """d = 0.5 on both of two images: sum 1, sum of squares 0.5 + 1, n + 2 = 4."""
    half = 1.96 * np.sqrt(1.5 - 1 / 4) / 4
    assert over_images(np.array([0.5, 0.5])) == pytest.approx((0.25 - half, 0.25 + half))


def answers(right: int, n: int = 100, *, jitter: tuple[int, ...] = (0, 0, 0, 0, 0)) -> Any:
    """For each seed, the first `right` (and as many more as the jitter says) of n images are answered rightly."""
    return np.stack([np.arange(n) < right + extra for extra in jitter])


def test_one_is_better_only_where_seeds_and_images_agree() -> None:
    better = compare("adam", answers(80, jitter=(0, 1, 2, 1, 0)), "sgd", answers(60))
    assert better.verdict == "first"
    assert better.by_seed == pytest.approx((0.20, 0.21, 0.22, 0.21, 0.20))
    assert better.difference == pytest.approx(0.208)
    assert compare("sgd", answers(60), "adam", answers(80)).verdict == "second"
    assert compare("adam", answers(60), "sgd", answers(60)).verdict == "cannot tell"
    # Three images in a hundred from every seed: the seeds are sure, the images are not.
    few = compare("adam", answers(63), "sgd", answers(60))
    assert few.seeds_interval is not None
    assert few.images_interval is not None
    assert few.seeds_interval[0] > 0 > few.images_interval[0]
    assert few.verdict == "cannot tell"
    # Twelve in a hundred on the mean, but one seed of five says the opposite.
    unsteady = compare("adam", answers(60, jitter=(30, 30, 30, -30, 0)), "sgd", answers(60))
    assert unsteady.images_interval is not None
    assert unsteady.images_interval[0] > 0
    assert unsteady.verdict == "cannot tell"


def test_the_verdict_in_words() -> None:
    adam, sgd = answers(80, jitter=(0, 1, 2, 1, 0)), answers(60)
    won = words(compare("adam", adam, "sgd", sgd).as_dict(), 100)
    assert won.startswith(
        "adam is better than sgd by 0.208 test accuracy (95 % interval +0.198 to +0.218 over the 5 se"
    )
    assert won.endswith("over the 100 test images)")
    lost = words(compare("sgd", sgd, "adam", adam).as_dict(), 100)
    assert lost == won
    equal = words(compare("adam", sgd, "sgd", sgd).as_dict(), 100)
    assert equal.startswith(
        "cannot tell adam from sgd: adam minus sgd is +0.000 test accuracy (95 % interval +0.000 to"
    )


def test_who_could_not_be_trained_loses_with_the_reason() -> None:
    pairs = all_pairs({"sgd": answers(60)}, {"adam": "it died", "sgd": "", "adamw": "it died too"})
    assert [words(pair.as_dict(), 100) for pair in pairs] == [
        "sgd is better than adam: it died",
        "cannot tell adam from adamw: neither could be trained: it died",
        "sgd is better than adamw: it died too",
    ]
    assert winner(pairs) == "sgd"


def test_a_winner_is_better_than_all_others() -> None:
    assert winner([Pair("a", "b", "first"), Pair("a", "c", "second"), Pair("b", "c", "second")]) == "c"
    assert winner([Pair("a", "b", "first"), Pair("a", "c", "cannot tell"), Pair("b", "c", "second")]) == ""
    assert winner([]) == ""
