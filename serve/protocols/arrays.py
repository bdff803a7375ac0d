"""Pixels that arrive as numbers: strictly 0-1 in floats or 0-255 in integers, never a guess.

A model that gets 0-1 where it wants 0-255 sees a black picture and answers all the same; nobody would notice. So the
kind of the numbers decides, and where kind and range do not agree the answer is 422 `bad_array`:

* floats (one float in an image is enough) must lie in 0 to 1 and become uint8 by round(255 x). A float above 1 is
  refused also when it is whole: 12.0 comes from pixels that were cast to float and not divided.
* integers must lie in 0 to 255, and one of them above 1: integers of 0 and 1 alone are floats that were cut off. (A
  picture that is black all over looks the same; send it encoded.) JSON written by JavaScript has no 1.0, so a float
  image of nothing but 0 and 1 is refused too; the Open Inference Protocol, which names the kind, takes it.

Floats of which none is above 1/255 are refused as well, unless all are 0.0: they were divided by 255 twice.
"""

from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from data.images import Pixels, check_pixels
from serve.errors import ApiError

Numbers = npt.NDArray[Any]

_TOLERANCE: Final = 1e-6
"""Of floats around 0 and 1: float32 arithmetic leaves 1.0000001."""

_MOST_LEVELS: Final = 4
"""Of lists within lists: images, rows, columns, channels."""

_WORDS: Final = {
    bool: "true or false",
    str: "texts",
    type(None): "nulls",
    dict: "objects",
    list: "lists beside numbers",
}


def bad_array(where: str, problem: str) -> ApiError:
    return ApiError(422, "bad_array", f"{where}: {problem}")


def pixels_from_lists(image: list[Any], where: str) -> Pixels:
    """Nested lists (H, W, 3) of JSON numbers to RGB uint8. ApiError 422 says what is wrong at `where`."""
    leaves, shape = flatten(image, where)
    check_shape(shape, where)
    return as_pixels(numbers_of(leaves, where).reshape(shape), where)


def flatten(values: list[Any], where: str) -> tuple[list[Any], tuple[int, ...]]:
    """The innermost values of nested lists, in order, and the lists' shape. ApiError 422 if ragged or too deep.

    Level by level, in loops that run in C: 5 ms for 224x224x3.
    """
    shape = [len(values)]
    while values and type(values[0]) is list:
        if len(shape) == _MOST_LEVELS:
            raise bad_array(where, f"lists lie more than {_MOST_LEVELS} deep: send each image as (height, width, 3)")
        if set(map(type, values)) != {list}:
            place = next(number for number, value in enumerate(values) if type(value) is not list)
            raise bad_array(where, f"{_place(place, shape)} is not a list like the ones beside it")
        if len(set(map(len, values))) != 1:
            first = len(values[0])
            place = next(number for number, value in enumerate(values) if len(value) != first)
            raise bad_array(
                where, f"ragged: {_place(place, shape)} has {len(values[place])} entries, the first {first}"
            )
        shape.append(len(values[0]))
        values = list(chain.from_iterable(values))
    return values, tuple(shape)


def _place(flat: int, shape: list[int]) -> str:
    """[row][column] of a position in the flattened level."""
    text = ""
    for size in reversed(shape):
        flat, index = divmod(flat, size)
        text = f"[{index}]{text}"
    return text


def numbers_of(leaves: list[Any], where: str) -> Numbers:
    """JSON numbers as int64 if all are integers, else as float64. ApiError 422 for anything that is not a number."""
    kinds = set(map(type, leaves))
    if odd := kinds - {int, float}:
        found = ", ".join(sorted(_WORDS[kind] for kind in odd))
        raise bad_array(where, f"holds {found}: send numbers, or an encoded image as {{'b64': ...}}")
    try:
        return np.array(leaves, dtype=np.int64 if kinds == {int} else np.float64)
    except OverflowError:
        raise bad_array(where, "holds an integer of more than 18 digits: send 0 to 255") from None


def check_shape(shape: tuple[int, ...], where: str) -> None:
    """ApiError 422 unless this is (H, W, 3) of a size that an image can have."""
    if len(shape) != 3 or shape[2] != 3:
        hint = ""
        if len(shape) == 2:
            hint = "; put each image of a batch into one more list, and give each pixel its three channels"
        elif len(shape) == 3 and shape[0] == 3:
            hint = "; channels come last: transpose it"
        elif len(shape) == 3 and shape[2] in (1, 4):
            hint = "; repeat grey three times, leave transparency out"
        raise bad_array(where, f"has the shape {shape}, expected (height, width, 3){hint}")
    if failure := check_pixels(np.broadcast_to(np.uint8(0), shape)):
        raise ApiError(422, failure.code, f"{where}: {failure.message}")


def as_pixels(image: Numbers, where: str) -> Pixels:
    """Floats in 0 to 1 or integers in 0 to 255, (H, W, 3) as `check_shape` wants it, to RGB uint8 of its own memory."""
    low, high = image.min(), image.max()
    if image.dtype.kind == "f":
        # Written so that NaN, which compares false, is refused.
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise bad_array(where, _wrong_floats(float(low), float(high)))
        if 0 < high <= 1 / 255 + _TOLERANCE:
            problem = (
                f"floats from {low:.6g} to {high:.6g}, all but black: divided by 255 twice? Divide pixels by 255 once"
            )
            raise bad_array(where, problem)
        scaled: Numbers = np.rint(np.clip(image, 0, 1) * 255)
        return scaled.astype(np.uint8, order="C")
    if low < 0 or high > 255:
        raise bad_array(where, f"integers from {low} to {high}: send pixels as integers from 0 to 255")
    if high <= 1:
        raise bad_array(
            where,
            "holds the integers 0 and 1 only, which looks like floats from 0 to 1 that were cut off: send pixels as "
            "integers from 0 to 255 or as floats from 0 to 1 (0.0, 1.0), a black image encoded",
        )
    return image.astype(np.uint8, order="C")


def _wrong_floats(low: float, high: float) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return "holds values that are not finite numbers: send floats from 0 to 1"
    found = f"floats from {low:.6g} to {high:.6g}"
    if low < 0:
        return f"{found}: send pixels from 0 to 1 as they are; the model subtracts its own mean"
    return f"{found}: divide by 255, or send integers from 0 to 255; floats must lie in 0 to 1"
