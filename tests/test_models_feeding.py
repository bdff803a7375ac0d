"""Rows on the device, however they get there, are the pack's own."""

import numpy as np
import pytest
import torch

from models import feeding
from models.augment import draw
from models.feeding import Resident, Streamed, near
from models.sources import Images
from tests.models_toys import toy_data

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("kind", ["resident", "streamed"])
@pytest.mark.parametrize("augmented", [False, True])
def test_batches_are_those_of_the_pack(kind: str, augmented: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_UPLOAD", 10)  # so that the upload takes several steps, the last one shorter
    data = toy_data(train=33, validation=12)
    rows = np.concatenate((data.validation.rows, data.train.rows[::-1], data.train.rows[:5]))
    pixels = Resident(data.images, rows, CPU) if kind == "resident" else Streamed(data.images, CPU)
    plain, other = (Images(source, data.preprocess, CPU, "strong") for source in (data.images, pixels))
    batch = np.array([40, 3, 3, 44, 0])
    draws = draw(len(batch), seed=0, epoch=1, step=0) if augmented else None
    assert torch.equal(plain.training(batch, draws, 1), other.training(batch, draws, 1))
    assert torch.equal(plain.plain(batch), other.plain(batch))


def test_only_the_rows_of_the_run_are_resident() -> None:
    data = toy_data(train=16, validation=8)
    resident = Resident(data.images, np.array([5, 2, 9]), CPU)
    assert resident[np.array([9, 2])].shape == (2, 32, 32, 3)
    for missing in (0, 7, 23):
        with pytest.raises(AssertionError, match="rows beyond those"):
            resident[np.array([2, missing])]


def test_pixels_are_resident_on_a_gpu_that_has_room_for_twice_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy_data(train=16, validation=8)
    monkeypatch.setattr(feeding, "Resident", lambda *_: "resident")
    rows = data.train.rows
    needed = 16 * 32 * 32 * 3
    assert near(data.images, rows, CPU) is data.images
    assert near(data.images, np.concatenate((rows, rows)), GPU, lambda _: 2 * needed) == "resident"
    assert isinstance(near(data.images, rows, GPU, lambda _: 2 * needed - 1), Streamed)
