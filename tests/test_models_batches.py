"""Batches: every image once, in an order that depends on seed and epoch alone."""

from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from models.batches import World, class_weights, cut, epoch_order


def test_an_order_holds_every_image_once_and_depends_on_seed_and_epoch() -> None:
    labels = np.arange(50) % 4
    orders = [epoch_order(labels, sampling=False, seed=s, epoch=e).tolist() for s in (0, 1) for e in (1, 2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_order(labels, sampling=False, seed=0, epoch=1).tolist()


def test_sampling_draws_classes_equally() -> None:
    labels = np.repeat([0, 1, 3], [900, 90, 10])
    drawn = labels[epoch_order(labels, sampling=True, seed=0, epoch=1)]
    assert len(drawn) == 1000
    assert np.abs(np.bincount(drawn, minlength=4)[[0, 1, 3]] - 333).max() < 60


def test_batches_cover_the_order_and_none_is_too_small() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        n, size, workers = (int(generator.integers(*limits)) for limits in ((2, 80), (2, 20), (1, 5)))
        order = generator.permutation(n)
        if min(n, size) < 2 * workers:
            with pytest.raises(UserError, match=f"{workers} workers need at least {2 * workers} images a batch"):
                cut(order, size, workers)
            continue
        batches = cut(order, size, workers)
        assert np.concatenate(batches).tolist() == order.tolist()
        assert all(len(batch) == size for batch in batches[:-1])
        assert 2 * workers <= len(batches[-1]) < size + 2 * workers
        for batch in batches:
            assert all(len(batch[World(rank, workers).part(len(batch))]) >= 2 for rank in range(workers))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 0, 0, 1], [4 / 6, 2.0, 0.0]), ([0, 1, 2], [1.0, 1.0, 1.0]), ([2, 2], [0.0, 0.0, 1.0])],
)
def test_class_weights_have_mean_one_over_the_images(labels: list[int], expected: list[float]) -> None:
    array: np.ndarray[Any, Any] = np.array(labels)
    weights = class_weights(array, 3)
    assert weights.tolist() == pytest.approx(expected)
    assert weights[array].mean() == pytest.approx(1)
