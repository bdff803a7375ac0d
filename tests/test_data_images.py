"""Bytes to upright RGB pixels, or a named failure: every nasty image, and what a resize does to pixels."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data import images, jpegscans
from data.images import MAX_ASPECT, Failure, Pixels, check_pixels, decode, decode_resized, encode_png, resize
from data.resizing import MIN_SIDE, Resize, ResizeMode
from tests.images_zoo import Nasty, encoded, many_scans, scene, zoo


@pytest.mark.parametrize("beast", zoo(), ids=lambda beast: beast.name)
def test_each_nasty_image_gets_its_answer(beast: Nasty) -> None:
    got = decode(beast.blob)
    if isinstance(got, Failure):
        assert got.code == beast.expected
        assert ":" in got.message  # what it is: what to do
        return
    assert beast.expected == "ok"
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert got.flags.writeable
    if beast.pixels is not None:
        assert got.shape == beast.pixels.shape
        assert np.abs(got.astype(int) - beast.pixels).mean() <= beast.near


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_decoding_and_resizing_in_one_go_gives_the_same_pixels(mode: ResizeMode) -> None:
    how = Resize(24, mode)
    for beast in zoo():
        full, small = decode(beast.blob), decode_resized(beast.blob, how)
        if isinstance(full, Failure) or isinstance(small, Failure):
            assert full == small
        else:
            assert np.array_equal(resize(full, how), small), beast.name


def test_an_image_is_converted_in_strips_as_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shades = np.random.default_rng(5).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    blobs = [encoded(shades), *(beast.blob for beast in zoo() if beast.expected == "ok")]
    at_once = [decode(blob) for blob in blobs]
    monkeypatch.setattr(images, "_STRIP", 100)
    for blob, expected in zip(blobs, at_once, strict=True):
        assert np.array_equal(decode(blob), expected)  # type: ignore[arg-type]
    # What a transparent image is, said once more: Pillow's own composite with white.
    image = Image.fromarray(shades)
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert np.array_equal(at_once[0], np.asarray(white))  # type: ignore[arg-type]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux says there what a process takes")
def test_a_transparent_image_takes_little_more_memory_than_another() -> None:
    """At its peak: Pillow's image with transparency and the one without, four bytes a pixel each, and strips of it."""
    code = """
import pathlib, resource, sys
import numpy as np
from data.images import decode
from tests.images_zoo import encoded
blob = sys.stdin.buffer.read()
decode(encoded(np.full((40, 40, 4), 99, np.uint8)))
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 12 * 4000**2
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(decode(blob).shape)
"""
    blob = encoded(np.full((4000, 4000, 4), 99, np.uint8), compress_level=1)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], input=blob, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "(4000, 4000, 3)"


def test_the_scans_of_a_jpeg_are_counted_as_libjpeg_reads_them() -> None:
    assert [jpegscans.count(many_scans(n), 500) for n in (0, 3, 494, 495, 9999)] == [6, 9, 500, 501, 501]
    assert jpegscans.count(encoded(scene(), "JPEG"), 500) == 1
    assert jpegscans.count(encoded(scene(), "JPEG", restart_marker_blocks=1), 500) == 1
    assert jpegscans.count(encoded(scene(), "JPEG", progressive=True), 500) == 10
    assert jpegscans.count(encoded(scene()), 500) == 0
    inside = encoded(scene(), "JPEG", comment=b"\xff\xda" * 900)  # a picture within a segment is not read
    assert jpegscans.count(inside, 500) == 1
    assert jpegscans.count(inside + many_scans(9), 500) == 1  # what follows the end neither
    head = b"\xff\xd8\xff\xda\0\2"
    assert jpegscans.count(head + b"\xff\0" * 10**6 + b"\xff\xff\xff\xda\0\0\xff\xda", 500) == 3
    assert jpegscans.count(b"\xff\xd8" + b"\xff" * 10**6, 500) == 0


def test_threads_do_not_disturb_each_other() -> None:
    beasts = zoo()
    alone = [decode(beast.blob) for beast in beasts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, [beast.blob for beast in beasts * 3]))
    for number, got in enumerate(together):
        expected = alone[number % len(beasts)]
        if isinstance(got, Failure) or isinstance(expected, Failure):
            assert got == expected
        else:
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("name", ["rgba.webp", "grey16.tif", "still.gif", "png-named.jpg"])
def test_a_fresh_process_opens_every_format(name: str) -> None:
    """Pillow loads its plugins when they are first needed: what an earlier test loaded must not be what saves us."""
    blob = next(beast.blob for beast in zoo() if beast.name == name)
    code = "import sys; from data.images import decode; print(decode(sys.stdin.buffer.read()).shape)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], input=blob, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "(32, 48, 3)"


def test_every_cut_of_a_file_is_a_value() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        blob = encoded(scene(), kind)
        for cut in range(0, len(blob), max(1, len(blob) // 60)):
            assert isinstance(decode(blob[:cut]), Failure | np.ndarray)


def test_every_flipped_byte_is_a_value() -> None:
    for kind in ("JPEG", "PNG", "GIF", "TIFF"):
        blob = bytearray(encoded(scene(), kind))
        for place in range(0, min(len(blob), 400), 3):
            blob[place] ^= 0xA5
            assert isinstance(decode(bytes(blob)), Failure | np.ndarray)
            blob[place] ^= 0xA5


def test_png_keeps_the_very_pixels() -> None:
    assert np.array_equal(decode(encode_png(scene())), scene())  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 48), (40, 40), (9, 170)])
def test_resize_makes_a_square(mode: ResizeMode, width: int, height: int) -> None:
    out = resize(scene(width, height), Resize(16, mode))
    assert out.shape == (16, 16, 3)
    assert out.dtype == np.uint8


def test_pad_keeps_the_aspect_between_black_bars() -> None:
    white: Pixels = np.full((20, 40, 3), 255, np.uint8)
    out = resize(white, Resize(40, "pad"))
    assert out[:10].max() == 0
    assert out[30:].max() == 0
    assert out[10:30].min() == 255


def test_crop_keeps_the_middle() -> None:
    image: Pixels = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    assert resize(image, Resize(20, "crop")).min() == 255


def test_stretch_keeps_the_whole_frame() -> None:
    image: Pixels = np.zeros((20, 60, 3), np.uint8)
    image[:, 30:] = 255
    out = resize(image, Resize(20))
    assert out[:, :9].max() == 0
    assert out[:, 11:].min() == 255


def test_resized_pixels_are_known() -> None:
    """Fixed-point arithmetic: these numbers hold on every machine. If they move, every cached pack must go too."""
    out = resize(scene(37, 23), Resize(8))
    assert out[..., 0].tolist()[0] == [49, 67, 87, 107, 127, 147, 167, 186]
    assert out[:, 0, 1].tolist() == [192, 175, 157, 138, 119, 101, 82, 65]


def test_the_array_door_has_the_same_limits() -> None:
    assert check_pixels(scene()) is None
    for array, code in (
        (scene().astype(np.float32), "bad_array"),
        (scene()[..., 0], "bad_array"),
        (np.zeros((20, 20, 4), np.uint8), "bad_array"),
        (np.zeros((MIN_SIDE - 1, 20, 3), np.uint8), "too_small"),
        (np.zeros((0, 0, 3), np.uint8), "too_small"),
        (np.zeros((10, 10 * MAX_ASPECT + 1, 3), np.uint8), "absurd_shape"),
        (np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (9000, 9000, 3)), "too_many_pixels"),
    ):
        failure = check_pixels(array)
        assert failure is not None
        assert failure.code == code


@pytest.mark.parametrize(("size", "mode"), [(0, "stretch"), (5000, "stretch"), (64, "squash")])
def test_a_wrong_resize_says_what_is_allowed(size: int, mode: ResizeMode) -> None:
    with pytest.raises(ValueError, match="must be"):
        Resize(size, mode)
