"""Scores agree with scikit-learn, intervals with Wilson, and nothing is claimed of classes that were not seen."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics

from models.metrics import beats_majority, score, wilson


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    k, n = int(generator.integers(2, 7)), int(generator.integers(1, 60))
    labels = generator.integers(0, k, n)
    probabilities = generator.dirichlet(np.full(k, 0.4), n)
    called = probabilities.argmax(axis=1)
    scores = score(probabilities, labels, [f"class {i}" for i in range(k)])
    everything = list(range(k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that labels do not have
        assert scores.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, called))
        assert scores.balanced_accuracy == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, called))
        assert scores.macro_f1 == pytest.approx(sklearn.metrics.f1_score(labels, called, average="macro"))
        assert scores.log_loss == pytest.approx(
            sklearn.metrics.log_loss(labels, probabilities, labels=everything), rel=1e-9
        )
        matrix = sklearn.metrics.confusion_matrix(labels, called, labels=everything)
        assert np.array_equal(scores.confusion, matrix)
        for average, name in ((None, "precision"), (None, "recall")):
            theirs = getattr(sklearn.metrics, f"{name}_score")(
                labels, called, labels=everything, average=average, zero_division=0
            )
            assert [getattr(one, name) or 0 for one in scores.per_class] == pytest.approx(theirs.tolist())
    assert sum(one.n for one in scores.per_class) == sum(one.predicted for one in scores.per_class) == n
    json.dumps(scores.as_dict(), allow_nan=False)


def test_wilson_equals_known_values() -> None:
    # the 48 of 50 of the bird story, and the values of Newcombe 1998, table I (81 of 263, 15 of 148, 0 of 20, 1 of 29)
    assert wilson(48, 50) == pytest.approx((0.865, 0.989), abs=5e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_holds_the_share_and_mirrors() -> None:
    for n in range(1, 40):
        for successes in range(n + 1):
            low, high = wilson(successes, n)
            assert 0 <= low <= successes / n <= high <= 1
            assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))
    with pytest.raises(ValueError, match="successes must be between 0 and n, got 3 of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(("right", "shown"), [(20, False), (21, True)])
def test_better_than_guessing_is_the_whole_interval(right: int, shown: bool) -> None:
    """Half of 30 are of each class; 20 of 30 is 0.49-0.81 by Wilson, 21 is 0.52-0.83."""
    labels = np.arange(30) % 2
    named = np.where(np.arange(30) < right, labels, 1 - labels)
    assert beats_majority(score(np.eye(2)[named], labels, "ab").as_dict()) == shown


def test_the_majority_stands_beside_the_score() -> None:
    probabilities = np.eye(3)[[0, 0, 1, 0]]
    scores = score(probabilities, np.array([0, 1, 1, 1]), "abc", training_labels=np.array([0, 0, 1]))
    assert (scores.majority_label, scores.majority_rate) == ("b", 0.75)
    assert (scores.training_majority_label, scores.training_majority_rate) == ("a", 0.25)
    assert scores.accuracy == 0.5
    assert not beats_majority(scores.as_dict())
    assert scores.balanced_accuracy == pytest.approx((1 + 1 / 3) / 2)
    third = scores.per_class[2]
    assert (third.n, third.recall, third.precision, third.recall_interval) == (0, None, None, (0.0, 1.0))
    assert score(probabilities, np.array([0, 1, 1, 1]), "abc").training_majority_rate is None


def test_an_impossible_answer_costs_a_finite_loss() -> None:
    assert score(np.array([[1.0, 0.0]]), np.array([1]), "ab").log_loss == pytest.approx(36.04, abs=0.01)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 2)), [], "for n > 0 labels"),
        (np.zeros((2, 3)), [0, 1], r"probabilities must be \(n, 2\)"),
        (np.zeros((1, 2)), [2], "labels must be 0 to 1, got 2 to 2"),
        (np.zeros((1, 2)), [-1], "labels must be 0 to 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(probabilities: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(probabilities, np.array(labels, int), "ab")
