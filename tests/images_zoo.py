"""Nasty images, made in code: what people's folders and requests really hold. Shared by the tests of every door."""

import functools
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from data.images import MAX_PIXELS, Pixels


@dataclass(frozen=True)
class Nasty:
    """One nasty file. `expected` is "ok", or the code of the failure that must be given for it.

    `pixels`, where it is given, is what an exact (lossless) file must decode to; `near` says by how much a lossy one
    may differ on average.
    """

    name: str
    blob: bytes
    expected: str
    pixels: Pixels | None = None
    near: float = 0.0


def scene(width: int = 48, height: int = 32) -> Pixels:
    """A picture without symmetry: each corner has its own colour, so any wrong turn or flip shows."""
    y, x = np.mgrid[0:height, 0:width]
    red = 40 + x * 160 // width
    green = 200 - y * 150 // height
    blue = np.where((x < width // 3) & (y < height // 3), 220, 60)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def encoded(
    pixels: Pixels, kind: Literal["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"] = "PNG", **options: Any
) -> bytes:
    """Pixels (H, W, 3) or (H, W) as a file of this kind."""
    return _saved(Image.fromarray(pixels), kind, **options)


@functools.cache
def zoo() -> list[Nasty]:
    """Every nasty file, each with a name that a file may have. Pixel sizes are small; decoding all takes a moment."""
    return [*_orientations(), *_modes(), *_containers(), *_damaged(), *_shapes(), *_not_images()]


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _orientations() -> list[Nasty]:
    """EXIF tag 0x0112, 1 to 8, around pixels that were turned the other way: all must come out alike."""
    upright = scene()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    beasts = []
    for number, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = number
        options: dict[str, Any] = {"exif": exif.tobytes()}
        image = np.ascontiguousarray(pixels)
        beasts.append(Nasty(f"orientation{number}.png", encoded(image, "PNG", **options), "ok", upright))
        jpeg = encoded(image, "JPEG", quality=95, subsampling=0, **options)
        beasts.append(Nasty(f"orientation{number}.jpg", jpeg, "ok", upright, near=4))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.ascontiguousarray(stored[6]), "TIFF", exif=exif.tobytes())
    beasts.append(Nasty("orientation6.tif", turned, "ok", upright))
    strange = Image.Exif()
    strange[0x0112] = 42
    beasts.append(Nasty("orientation42.png", encoded(upright, "PNG", exif=strange.tobytes()), "ok", upright))
    broken = encoded(upright, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    beasts.append(Nasty("broken-exif.png", broken, "ok", upright))
    return beasts


def _modes() -> list[Nasty]:
    picture = scene()
    image = Image.fromarray(picture)
    grey = picture[..., 0]
    deep = (grey.astype(np.uint16) << 8) | 0x7F
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    clear = palette.copy()
    hole = clear.getpixel((0, 0))
    assert isinstance(hole, int | float)
    on_white = np.array(palette.convert("RGB"))
    on_white[np.array(palette) == hole] = 255
    alpha = np.dstack([picture, np.where(np.arange(48)[None, :] < 24, 0, 255).repeat(32, 0).astype(np.uint8)])
    half = picture.copy()
    half[:, :24] = 255
    two = np.dstack([grey, alpha[..., 3]])
    two_white = np.dstack([half[..., 0]] * 3)
    black_white = np.where(grey > 120, 255, 0).astype(np.uint8)
    return [
        Nasty("cmyk.jpg", _saved(image.convert("CMYK"), "JPEG", quality=95), "ok", picture, near=6),
        Nasty("ycck-progressive.jpg", encoded(picture, "JPEG", quality=95, progressive=True), "ok", picture, near=6),
        Nasty("palette.png", _saved(palette, "PNG"), "ok", np.array(palette.convert("RGB"))),
        Nasty("palette-transparent.png", _saved(clear, "PNG", transparency=int(hole)), "ok", on_white),
        Nasty("grey8.png", encoded(grey), "ok", np.dstack([grey] * 3)),
        Nasty("grey8.jpg", encoded(grey, "JPEG", quality=95), "ok", np.dstack([grey] * 3), near=3),
        Nasty("grey16.png", _saved(Image.fromarray(deep), "PNG"), "ok", np.dstack([grey] * 3)),
        Nasty("grey16.tif", _saved(Image.fromarray(deep), "TIFF"), "ok", np.dstack([grey] * 3)),
        Nasty(
            "bilevel.png", _saved(Image.fromarray(black_white).convert("1"), "PNG"), "ok", np.dstack([black_white] * 3)
        ),
        Nasty("rgba.png", _saved(Image.fromarray(alpha), "PNG"), "ok", half),
        Nasty("rgba.webp", _saved(Image.fromarray(alpha), "WEBP", lossless=True, exact=True), "ok", half),
        Nasty("grey-alpha.png", _grey_alpha(two), "ok", two_white),
        Nasty("float.tif", _saved(Image.fromarray(grey.astype(np.float32)), "TIFF"), "unsupported"),
    ]


def _grey_alpha(pixels: Pixels) -> bytes:
    grey, alpha = Image.fromarray(pixels[..., 0].copy()), Image.fromarray(pixels[..., 1].copy())
    return _saved(Image.merge("LA", (grey, alpha)), "PNG")


def _containers() -> list[Nasty]:
    picture = scene()
    image, other = Image.fromarray(picture), Image.fromarray(picture[::-1].copy())
    more: dict[str, Any] = {"save_all": True, "append_images": [other], "duration": 100}
    return [
        Nasty("png-named.jpg", encoded(picture), "ok", picture),
        Nasty("UPPER.PNG", encoded(picture), "ok", picture),
        Nasty("lossless.webp", encoded(picture, "WEBP", lossless=True), "ok", picture),
        Nasty("plain.bmp", encoded(picture, "BMP"), "ok", picture),
        Nasty("still.gif", encoded(picture, "GIF"), "ok", picture, near=12),
        Nasty("mpo.jpg", _saved(image, "MPO", save_all=True, append_images=[other], quality=95), "ok", picture, near=6),
        Nasty("animated.gif", _saved(image, "GIF", **more), "animated"),
        Nasty("animated.png", _saved(image, "PNG", **more), "animated"),
        Nasty("animated.webp", _saved(image, "WEBP", **more), "animated"),
        Nasty("pages.tif", _saved(image.copy(), "TIFF", save_all=True, append_images=[other.copy()]), "animated"),
    ]


def _damaged() -> list[Nasty]:
    jpeg, png = encoded(scene(160, 120), "JPEG", quality=95), encoded(scene(160, 120))
    rough = encoded(np.frombuffer(zlib.compress(bytes(range(256)) * 99) * 400, np.uint8)[:43200].reshape(120, 120, 3))
    return [
        Nasty("zero.jpg", b"", "empty"),
        Nasty("half.jpg", jpeg[: len(jpeg) // 2], "truncated"),
        Nasty("half.png", rough[: len(rough) // 2], "truncated"),
        Nasty("header-only.jpg", jpeg[:10], "truncated"),
        Nasty("header-only.png", png[:12], "truncated"),
        Nasty("no-pixels.png", png[:60], "truncated"),
        Nasty("rubble.png", rough[:200] + bytes(len(rough) - 200), "truncated"),
    ]


def _shapes() -> list[Nasty]:
    return [
        Nasty("1x1.png", encoded(scene(1, 1)), "too_small"),
        Nasty("200x4.png", encoded(scene(200, 4)), "too_small"),
        Nasty("8x8.png", encoded(scene(8, 8)), "ok", scene(8, 8)),
        Nasty("line.png", encoded(scene(400, 10)), "absurd_shape"),
        Nasty("tower.png", encoded(scene(10, 400)), "absurd_shape"),
        Nasty("bomb.png", bomb(), "too_many_pixels"),
        Nasty("bigger-bomb.png", bomb(60_000), "too_many_pixels"),
        Nasty("bomb.gif", _gif_bomb(), "too_many_pixels"),
        Nasty("scans.jpg", many_scans(600), "too_many_scans"),
        Nasty("scans-of-a-large-picture.jpg", many_scans(25, 8000, 7990), "too_many_scans"),
        Nasty("segments.jpg", b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000, "too_many_scans"),
        Nasty("many-scans.jpg", many_scans(100), "ok", np.dstack([scene()[..., 0]] * 3), near=6),
    ]


def many_scans(repeats: int, width: int = 48, height: int = 32) -> bytes:
    """A grey progressive JPEG whose last scan comes `repeats` times more. Its header may promise another size."""
    jpeg = encoded(scene()[..., 0].copy(), "JPEG", progressive=True)
    frame = jpeg.index(b"\xff\xc2") + 5
    jpeg = jpeg[:frame] + struct.pack(">HH", height, width) + jpeg[frame + 4 : -2]
    last = jpeg[jpeg.rindex(b"\xff\xda") :]
    return jpeg + last * repeats + b"\xff\xd9"


def bomb(side: int = 10_000) -> bytes:
    """A valid PNG of a few kilobytes that unpacks to `side` x `side` pixels."""
    assert side * side > MAX_PIXELS

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    body = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _gif_bomb() -> bytes:
    """A GIF of 40 bytes whose header promises 65,535 x 65,535 pixels."""
    side = 65535
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    return head + struct.pack("<BHHHHB", 0x2C, 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"


def _not_images() -> list[Nasty]:
    return [
        Nasty("text.jpg", b"this is no image, whatever its name says\n" * 20, "not_an_image"),
        Nasty("page.png", b"<!doctype html><title>404 Not Found</title>", "not_an_image"),
        Nasty("vector.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', "not_an_image"),
        Nasty("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not_an_image"),
        Nasty("archive.png", b"PK\x03\x04" + bytes(200), "not_an_image"),
        Nasty("nulls.jpg", bytes(5000), "not_an_image"),
    ]
