"""Encoded bytes in, upright RGB pixels out. The only file that knows Pillow.

The pack and the predictor both come through here: an image is decoded and resized in one way for training and serving.
What is wrong with one image is a value (`Failure`), never an exception: one bad file must not end a batch of good ones.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from data import jpegscans
from data.resizing import MIN_SIDE, Resize

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""Upright RGB, shape (H, W, 3), values 0-255, C-contiguous."""

IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp"),
    *(".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm", ".avif"),
)
"""What files of images are called, in lower case."""
MAX_PIXELS: Final = 64_000_000
"""Most pixels in one image: above an 8K frame (33 million) and a 61-megapixel camera, below Pillow's own bomb warning
(89 million), so that this limit answers first. As an array it is 192 MB. While it is decoded the process grows by about
0.5 GB (Pillow takes four bytes a pixel, and an image and its RGB copy are there at once), by 0.8 GB where it has to be
turned as well. A process that trains keeps that memory for the next image, an endpoint gives it back
(`models.processes`)."""
MAX_ASPECT: Final = 20
"""Most times that one side may be as long as the other. A panorama has 10; above 20 it is a scan line or a ruler."""
MAX_SCANS: Final = 500
"""Most scans in one JPEG, also a small one. Encoders write up to 18 (progressive CMYK)."""
MAX_SCANNED: Final = 24 * MAX_PIXELS
"""Most pixels that all scans of a JPEG may go over: a second of CPU. A scan without content costs a hundred bytes of
the file and still goes over the whole picture, so without a limit a megabyte decodes for minutes."""

DECODER: Final = f"pillow-{PIL.__version__}-{MAX_PIXELS}-{MIN_SIDE}-{MAX_ASPECT}-{MAX_SCANS}-{MAX_SCANNED}"
"""Part of every cache key: another decoder may give other pixels, other limits other failures."""

# Only what cameras, tools and the web make (MPO comes as JPEG). Some on Pillow's longer list call programs (EPS).
_FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF")
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*")

# EXIF orientation -> what puts the image upright (EXIF 2.32, tag 0x0112).
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION: Final = 0x0112

_STRIP: Final = 2**20  # pixels that are converted at a time: what comes in between is small beside the image


@dataclass(frozen=True)
class Failure:
    """Why one image gives no pixels (or no prediction): a stable `code` for programs, a `message` for people."""

    code: str
    message: str


def decode(blob: bytes) -> Pixels | Failure:
    """Decode one encoded image to upright RGB uint8 (H, W, 3), C-contiguous, or name what is wrong with it.

    The extension of its file never matters. Transparency is laid on white, 16-bit grey keeps its upper byte, and of a
    camera's multi-picture JPEG (MPO) the first picture counts.
    """
    image = _upright(blob)
    return image if isinstance(image, Failure) else _pixels(image)


def decode_resized(blob: bytes, how: Resize) -> Pixels | Failure:
    """The pixels of `resize(decode(blob), how)`, without the full-size array in between.

    A JPEG much larger than `how.size` is reduced while it is decoded, where `how` allows it: its pixels are near those.
    """
    image = _upright(blob, how)
    return image if isinstance(image, Failure) else _pixels(_resized(image, how))


def resize(image: Pixels, how: Resize) -> Pixels:
    """Upright RGB (H, W, 3) to (size, size, 3): bilinear, antialiased, in fixed point: equal on every machine."""
    return _pixels(_resized(Image.fromarray(image), how))


def check_pixels(array: npt.NDArray[np.generic]) -> Failure | None:
    """The same limits for pixels that arrive as an array: None when (H, W, 3) uint8 and of a sane size."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        return Failure(
            "bad_array",
            f"expected upright RGB uint8 of shape (height, width, 3), got {array.dtype} {array.shape}: "
            "convert it, or send the encoded image",
        )
    return _check_size(array.shape[1], array.shape[0])


def encode_png(image: Pixels) -> bytes:
    """RGB (H, W, 3) or grey (H, W) uint8 to PNG bytes: lossless, so the decoded pixels are these very pixels."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=3)
    return out.getvalue()


def _check_size(width: int, height: int) -> Failure | None:
    if width * height > MAX_PIXELS:
        return Failure(
            "too_many_pixels", f"{width}x{height} is above {MAX_PIXELS:,} pixels: scale it down before sending it"
        )
    if min(width, height) < MIN_SIDE:
        return Failure("too_small", f"{width}x{height} has a side below {MIN_SIDE} pixels: send the original image")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Failure(
            "absurd_shape", f"{width}x{height}: one side is over {MAX_ASPECT} times the other: crop it to a photograph"
        )
    return None


def _upright(blob: bytes, how: Resize | None = None) -> Image.Image | Failure:
    """Bytes to an upright Pillow image of mode RGB, reduced where `how` allows it. Whatever a hostile file makes Pillow
    raise becomes a Failure."""
    if not blob:
        return Failure("empty", "the file has no bytes: copy it again from its source")
    scans = jpegscans.count(blob, MAX_SCANS)
    if scans > MAX_SCANS:
        return _too_many_scans(scans)
    try:
        image = Image.open(io.BytesIO(blob), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Failure("too_many_pixels", f"above {MAX_PIXELS:,} pixels: scale it down before sending it")
    except MemoryError:  # our machine's trouble, not the image's
        raise
    except Exception:
        return _unopened(blob)
    with image:
        try:
            refused = _animation(image) or _check_size(*image.size) or _check_scans(scans, *image.size)
            return refused or _turned(image, how)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return Failure("too_many_pixels", f"above {MAX_PIXELS:,} pixels: scale it down before sending it")
        except MemoryError:
            raise
        except Exception as error:
            return Failure("truncated", f"the {image.format} file is cut off or damaged ({error}): copy it again")


def _unopened(blob: bytes) -> Failure:
    if bytes(blob[:8]).startswith(_SIGNATURES):
        return Failure("truncated", "it begins like an image, but is cut off or damaged: copy it again")
    return Failure("not_an_image", "not a JPEG, PNG, GIF, WebP, TIFF, BMP, PPM or AVIF image: export it as JPEG or PNG")


def _animation(image: Image.Image) -> Failure | None:
    """MPO holds a camera's preview or second eye beside the photograph: there, many pictures are one image."""
    frames = int(getattr(image, "n_frames", 1))
    if frames == 1 or image.format == "MPO":
        return None
    return Failure("animated", f"it holds {frames} frames: export the frames, and send each as an image of its own")


def _check_scans(scans: int, width: int, height: int) -> Failure | None:
    return _too_many_scans(scans, f" of {width}x{height} pixels") if scans * width * height > MAX_SCANNED else None


def _too_many_scans(scans: int, each: str = "") -> Failure:
    return Failure("too_many_scans", f"a JPEG of {scans} or more scans{each} takes too long to decode: save it anew")


def _turned(image: Image.Image, how: Resize | None) -> Image.Image | Failure:
    if how and (by := how.reduction(*image.size)) > 1:
        image.draft(None, (image.width // by, image.height // by))  # formats that cannot do it take no notice
    image.load()  # first: some formats know (TIFF, PNG) or apply (TIFF, AVIF) their orientation only after it
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF beside good pixels: take the pixels as they lie
        orientation = 1
    upright = _rgb(image)
    if isinstance(upright, Failure):
        return upright
    return upright.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else upright


def _rgb(image: Image.Image) -> Image.Image | Failure:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _in_strips(image, _upper_byte)
    if image.mode in ("I", "F", "LAB", "HSV"):
        return Failure("unsupported", f"pixels of kind {image.mode} have no agreed brightness: export it as 8-bit RGB")
    if image.has_transparency_data:
        return _in_strips(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_byte(image: Image.Image) -> Image.Image:
    # Full range, not the image's own: stretching each image to its own contrast would make the same scene differ.
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert(image)`, which takes each pixel alone, without its steps in full size."""
    strips = _strips(image)
    if len(strips) == 1:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top, bottom in strips:
        whole.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return whole


def _strips(image: Image.Image) -> list[tuple[int, int]]:
    """From which row to which the image is gone through."""
    rows = max(1, _STRIP // image.width)
    return [(top, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def _resized(image: Image.Image, how: Resize) -> Image.Image:
    width, height, side = image.width, image.height, how.size
    if how.mode == "stretch":
        return image.resize((side, side), Image.Resampling.BILINEAR)
    if how.mode == "crop":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))
    long = max(width, height)
    scaled = (max(1, (2 * width * side + long) // (2 * long)), max(1, (2 * height * side + long) // (2 * long)))
    square = Image.new("RGB", (side, side))
    inner = image.resize(scaled, Image.Resampling.BILINEAR)
    square.paste(inner, ((side - scaled[0]) // 2, (side - scaled[1]) // 2))
    return square


def _pixels(image: Image.Image) -> Pixels:
    pixels = np.empty((image.height, image.width, 3), np.uint8)  # owned and writable: the Pillow image can go
    for top, bottom in _strips(image):  # Pillow's way to an array makes two copies more
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels
