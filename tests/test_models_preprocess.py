"""Preprocessing and augmentation: the same pixels give the same numbers, and chance is drawn per image."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from data.resizing import Resize
from models.augment import augment, draw
from models.preprocess import Preprocess
from tests.models_toys import toy_images

STORY = Preprocess(Resize(32))
IMAGENET = Preprocess.for_model("resnet18", Resize(32, "crop"))


def test_the_numbers_are_the_formula() -> None:
    images, _ = toy_images(4)
    unit = images.astype(np.float64).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(STORY.to_batch(images).numpy(), unit, atol=1e-6)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    np.testing.assert_allclose(IMAGENET.to_batch(images).numpy(), (unit - mean) / std, atol=1e-5)


def test_a_batch_is_channels_last_and_leaves_the_pixels_alone() -> None:
    images, _ = toy_images(4)
    kept = images.copy()
    images.setflags(write=False)
    for source in (images, torch.from_numpy(kept)):
        batch = IMAGENET.to_batch(source)
        assert (batch.dtype, tuple(batch.shape)) == (torch.float32, (4, 3, 32, 32))
        assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images, kept)


def test_the_numbers_are_the_same_in_numpy() -> None:
    images, _ = toy_images(5)
    for what in (STORY, IMAGENET):
        expected = what.to_batch(images).numpy()
        for given in (images, list(images), list(np.asfortranarray(images))):
            found = what.to_array(given)
            assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
            assert np.array_equal(found, expected)
    for wrong in ([], list(images.astype(np.float32)), list(images[..., :2]), list(images[0])):
        with pytest.raises(ValueError, match=r"images must be one or more of uint8 \(H, W, 3\)"):
            STORY.to_array(wrong)


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), torch.zeros(2, 3, 8, 8)])
def test_what_is_no_batch_of_bytes_is_refused(images: Any) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, H, W, 3\), got"):
        STORY.to_batch(images)


def test_it_survives_json() -> None:
    for what in (STORY, IMAGENET):
        assert Preprocess.from_dict(json.loads(json.dumps(what.as_dict()))) == what
    # Bundles from before JPEGs were reduced: their models saw pictures that were not.
    old = {**STORY.as_dict(), "resize": {"size": 32, "mode": "stretch"}}
    assert Preprocess.from_dict(old).resize == Resize(32, reduced=False)
    with pytest.raises(ValueError, match="std > 0"):
        Preprocess(Resize(32), std=(1.0, 0.0, 1.0))


def batch(n: int = 6, size: int = 24) -> torch.Tensor:
    return STORY.to_unit(toy_images(n, size)[0])


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_augmented_images_keep_shape_and_range_and_differ(strength: Any) -> None:
    images = batch()
    changed = augment(images.clone(), draw(6, seed=0, epoch=1, step=0), strength)
    assert changed.shape == images.shape
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert all(not torch.allclose(one, other, atol=0.02) for one, other in zip(images, changed, strict=True))


def test_off_changes_nothing() -> None:
    images = batch()
    assert torch.equal(augment(images.clone(), draw(6, 0, 1, 0), "off"), images)


def test_draws_depend_on_seed_epoch_and_step_and_not_on_the_slice() -> None:
    places = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    draws = [draw(6, *place) for place in places]
    assert len({tuple(values.flatten().tolist()) for values in draws}) == 4
    assert torch.equal(draws[0], draw(6, 0, 1, 0))
    images = batch()
    whole = augment(images.clone(), draws[0], "strong")
    parts = [augment(images[part].clone(), draws[0][part], "strong") for part in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_each_change_does_what_its_name_says() -> None:
    images, still = batch(1), torch.full((1, 8), 0.5)  # no rotation, no shift, no change of light or colour

    def changed(place: int, value: float) -> torch.Tensor:
        draws = still.clone()
        draws[0, 2] = 1 - 1e-7  # the whole image
        draws[0, place] = value
        return augment(images.clone(), draws, "strong")

    torch.testing.assert_close(changed(0, 0.9), images, atol=1e-3, rtol=0)
    torch.testing.assert_close(changed(0, 0.1), images.flip(3), atol=1e-3, rtol=0)
    assert float(changed(5, 0.0).mean()) == pytest.approx(float(images.mean()) * 0.65, abs=1e-3)
    assert float(changed(6, 0.0).std()) < 0.75 * float(images.std())
    grey = changed(7, 0.0)
    assert float(grey.std(dim=1).mean()) < 0.75 * float(images.std(dim=1).mean())
    assert not torch.allclose(changed(1, 0.0), images, atol=0.05)
    assert not torch.allclose(changed(2, 0.0), images, atol=0.05)


def test_a_rotation_keeps_circles_round() -> None:
    y, x = np.mgrid[:33, :33] - 16
    ring = torch.from_numpy(((np.hypot(x, y) < 8) * 255).astype(np.uint8))[None, :, :, None].expand(1, 33, 33, 3)
    draws = torch.full((1, 8), 0.5)
    draws[0, 1], draws[0, 2] = 0.0, 1 - 1e-7
    images = STORY.to_unit(ring.contiguous())
    assert float((augment(images.clone(), draws, "strong") - images).abs().mean()) < 0.02
