"""A JPEG much larger than what a network takes is reduced while it is decoded: by how much, and what that changes."""

import io

import numpy as np
import pytest
from PIL import Image

from data.images import Failure, Pixels, decode, decode_resized, resize
from data.resizing import Resize, ResizeMode
from tests.images_zoo import encoded, scene, zoo

MODES: tuple[ResizeMode, ...] = ("stretch", "crop", "pad")


def photograph(width: int, height: int) -> Pixels:
    """Shapes of every scale, edges and grain."""
    draw = np.random.default_rng(7)
    layers = [
        Image.fromarray(draw.integers(0, 256, (height // by, width // by, 3), np.uint8)).resize((width, height))
        for by in (64, 16, 4)
    ]
    mixed = sum(share * np.asarray(layer, np.float64) for share, layer in zip((0.6, 0.3, 0.1), layers, strict=True))
    edge = np.where(np.arange(width) % 96 < 48, 30, -30)[None, :, None]
    return (mixed + edge + draw.normal(0, 4, (height, width, 1))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "mode", "width", "height", "by"),
    [
        (224, "stretch", 4000, 3000, 4),  # 3000 / 8 is less than twice 224
        (224, "stretch", 1920, 1080, 2),
        (224, "stretch", 896, 896, 2),  # exactly twice is enough
        (224, "stretch", 894, 1000, 1),
        (224, "stretch", 224, 224, 1),
        (64, "stretch", 4000, 3000, 8),  # libjpeg knows no sixteenth
        (64, "stretch", 4001, 3000, 1),  # no half, quarter or eighth has whole pixels
        (64, "stretch", 4002, 3000, 2),
        (224, "crop", 4000, 1000, 2),  # the short side counts
        (224, "pad", 4000, 1000, 8),  # the long side counts
        (224, "pad", 1000, 4000, 8),
    ],
)
def test_by_how_much(size: int, mode: ResizeMode, width: int, height: int, by: int) -> None:
    assert Resize(size, mode).reduction(width, height) == by
    assert Resize(size, mode, reduced=False).reduction(width, height) == 1


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_file_comes_out_nearly_as_without(mode: ResizeMode) -> None:
    changed = set[str]()
    for beast in zoo():
        small, exact = decode_resized(beast.blob, Resize(8, mode)), decode_resized(beast.blob, Resize(8, mode, False))
        if isinstance(small, Failure) or isinstance(exact, Failure):
            assert small == exact, beast.name
            continue
        assert np.abs(small.astype(int) - exact).mean() < 4, beast.name
        if not np.array_equal(small, exact):
            changed.add(beast.name)
    jpegs = {*(f"orientation{turn}.jpg" for turn in range(1, 9)), "cmyk.jpg", "mpo.jpg", "ycck-progressive.jpg"}
    # A grey gradient may come out equal to the last pixel.
    assert jpegs <= changed <= {*jpegs, "grey8.jpg", "many-scans.jpg"}


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_photograph_comes_out_nearly_as_without(mode: ResizeMode, subsampling: int) -> None:
    for size in (24, 48, 96):
        blob = encoded(photograph(768, 512), "JPEG", quality=90, subsampling=subsampling)
        small, exact = decode_resized(blob, Resize(size, mode)), decode_resized(blob, Resize(size, mode, False))
        assert not isinstance(small, Failure)
        assert not isinstance(exact, Failure)
        assert not np.array_equal(small, exact)
        assert np.abs(small.astype(int) - exact).mean() < 2.5


def test_without_it_the_pixels_are_those_of_the_two_steps() -> None:
    blob, how = encoded(photograph(768, 512), "JPEG"), Resize(24, reduced=False)
    full = decode(blob)
    assert not isinstance(full, Failure)
    assert np.array_equal(resize(full, how), decode_resized(blob, how))  # type: ignore[arg-type]


def test_what_is_wrong_with_a_file_is_found_all_the_same() -> None:
    blob, how = encoded(photograph(768, 512), "JPEG"), Resize(24)
    cut = decode_resized(blob[: len(blob) // 2], how)
    assert isinstance(cut, Failure)
    assert cut.code == "truncated"
    # The limits are on the picture that was sent, not on what is made of it.
    thin = decode_resized(encoded(scene(1600, 64), "JPEG"), Resize(8))
    assert isinstance(thin, Failure)
    assert thin.code == "absurd_shape"


def test_it_is_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = list[tuple[int, int]]()
    real = Image.Image.getexif

    def watched(image: Image.Image) -> Image.Exif:
        loaded.append(image.size)
        return real(image)

    monkeypatch.setattr(Image.Image, "getexif", watched)
    decode_resized(encoded(photograph(768, 512), "JPEG"), Resize(64))
    out = io.BytesIO()
    Image.fromarray(photograph(768, 512)).save(out, "PNG")
    decode_resized(out.getvalue(), Resize(64))
    assert loaded == [(192, 128), (768, 512)]
