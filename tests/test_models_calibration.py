"""Temperature and threshold: found on validation, bounded by what a few images can carry."""

from itertools import pairwise

import numpy as np
import pytest

from models.calibration import calibrate, confident_threshold, fit_temperature
from models.catalog import ModelConfig, build
from models.inference import softmax
from models.metrics import log_loss
from tests.models_toys import toy_data


def drawn(n: int = 4000, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth that the labels are drawn from."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (n, k))
    labels = np.array([generator.choice(k, p=row) for row in softmax(logits)])
    return logits, labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(factor: float) -> None:
    logits, labels = drawn()
    found = fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.08)
    losses = [log_loss(softmax(logits * factor, t), labels) for t in (found, found * 0.97, found * 1.03)]
    assert losses[0] == min(losses)


def test_a_few_images_move_the_temperature_little() -> None:
    """Three of three right is no reason for certainty; three thousand are."""
    right, labels = np.eye(3)[[0, 1, 2]] * 5, np.array([0, 1, 2])
    assert 0.9 < fit_temperature(right, labels) < 1
    assert fit_temperature(np.tile(right, (1000, 1)), np.tile(labels, 1000)) < 0.6
    assert fit_temperature(np.tile(right, (1000, 1)), np.tile((labels + 1) % 3, 1000)) == pytest.approx(20)
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1


def test_the_threshold_is_the_lowest_that_keeps_the_promise() -> None:
    top = np.linspace(0.99, 0.6, 40)
    probabilities = np.stack((top, 1 - top), axis=1)
    labels = np.zeros(40, int)
    labels[[30, 35, 36, 39]] = 1  # up to the 35th: 34 of 35 right; the 37th ends at 34 of 37; 38 and 39: 36 of 39
    threshold = confident_threshold(probabilities, labels)
    assert threshold is not None
    assert threshold == pytest.approx(top[34], abs=2e-5)
    assert (top >= threshold).sum() == 35


@pytest.mark.parametrize("seed", range(30))
def test_the_threshold_equals_a_search_through_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 80))
    top = generator.choice(np.round(np.linspace(0.5, 1, 21), 3), n)  # with ties
    probabilities = np.stack((top, 1 - top), axis=1)
    labels = (generator.random(n) > 0.3 + 0.7 * top).astype(int)
    right = probabilities.argmax(axis=1) == labels
    good = [p for p in set(top) if (top >= p).sum() >= 20 and right[top >= p].mean() >= 0.95]
    found = confident_threshold(probabilities, labels)
    assert found == (pytest.approx(min(good), abs=2e-5) if good else None)


def test_too_few_images_give_no_threshold() -> None:
    assert confident_threshold(np.tile([0.9, 0.1], (19, 1)), np.zeros(19, int)) is None
    assert confident_threshold(np.tile([0.9, 0.1], (20, 1)), np.zeros(20, int)) is not None
    assert confident_threshold(np.zeros((0, 2)), np.zeros(0, int)) is None


def test_a_softmax_survives_large_logits_and_keeps_what_is_no_number() -> None:
    shares = softmax(np.array([[1e4, 0.0], [np.nan, 0.0], [np.inf, 0.0]]))
    assert shares[0].tolist() == [1, 0]
    assert np.isnan(shares[1:]).all()
    assert all(a <= b for a, b in pairwise(softmax(np.array([[1.0, 0.0]]), t)[0, 1] for t in (0.5, 1, 2)))


def test_a_model_is_calibrated_on_the_validation_rows() -> None:
    data = toy_data()
    found = calibrate(build(ModelConfig(), classes=3, image_size=32), data)
    assert 0.25 <= found.temperature <= 20
    assert set(found.thresholds) == {"confident"}
