"""Numbers to pixels: what is taken, what is refused with words, and that nothing else can happen."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data.images import MAX_PIXELS
from serve.errors import ApiError
from serve.protocols import tensors, tfserving
from serve.protocols.arrays import as_pixels, check_shape, pixels_from_lists
from serve.protocols.encoded import blob_of
from serve.protocols.jsonbody import parse
from serve.settings import EndpointConfig
from tests.protocols import floats, pixels
from tests.serving import picture

LIMITS = EndpointConfig("somewhere", max_files=5)


def refusal(call: Callable[[], Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value


def square(value: Any) -> list[Any]:
    """8x8x3 of one value."""
    return [[[value] * 3 for _ in range(8)] for _ in range(8)]


def changed(value: Any, *, inside: Any = 0.5) -> list[Any]:
    """8x8x3 with `value` in one place."""
    image = square(inside)
    image[3][4][1] = value
    return image


def nested(levels: int, value: Any) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def test_integers_are_taken_as_they_are() -> None:
    image = pixels(1)
    found = pixels_from_lists(image.tolist(), "here")
    assert found.dtype == np.uint8
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert np.array_equal(found, image)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_floats_that_were_divided_by_255_are_the_pixels_again(kind: type) -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(pixels_from_lists(floats(image).astype(kind).tolist(), "here"), image)
    assert np.array_equal(as_pixels(floats(image).astype(kind), "here"), image)


def test_one_float_makes_an_image_of_floats() -> None:
    found = pixels_from_lists([[[0, 0.5, 1]] * 8] * 8, "here")
    assert found[0, 0].tolist() == [0, 128, 255]


def test_a_float_image_of_black_and_white_is_one() -> None:
    assert pixels_from_lists(changed(1.0, inside=0.0), "here").max() == 255
    assert pixels_from_lists(square(0.0), "here").max() == 0
    assert pixels_from_lists(square(-1e-9), "here").max() == 0
    assert pixels_from_lists(changed(2 / 255, inside=0.0), "here").max() == 2
    assert pixels_from_lists(square(1.0000001), "here").max() == 255


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (square(12.0), "divide by 255"),
        (changed(1.01), "divide by 255"),
        (changed(255.0, inside=128), "divide by 255"),
        (changed(-0.2), "subtracts its own mean"),
        (changed(1e400), "not finite"),
        (changed(float("nan")), "not finite"),
        (square(1), "looks like floats from 0 to 1"),
        (square(0), "looks like floats from 0 to 1"),
        (changed(256, inside=3), "0 to 255"),
        (changed(-1, inside=3), "0 to 255"),
        (changed(10**18, inside=3), "0 to 255"),
        (changed(10**30, inside=3), "more than 18 digits"),
        (changed(10**400), "more than 18 digits"),
        (changed(True), "true or false"),
        (changed(True, inside=3), "true or false"),
        (changed("7"), "texts"),
        (changed(None), "nulls"),
        (changed({"a": 1}), "objects"),
        (changed([1.0]), "lists beside numbers"),
        (square([0.5]), "(8, 8, 3, 1)"),
        (square([[0.5]]), "more than 4 deep"),
        (nested(150, [[0.5], 3]), "more than 4 deep"),
        ([[[0.5], 3]], "[0][1] is not a list"),
        (square(1 / 255), "divided by 255 twice"),
        (changed(0.9 / 255, inside=0.0), "divided by 255 twice"),
        (changed(5e-9, inside=0.0), "divided by 255 twice"),
        ([0.5] * 192, "(192,)"),
        ([[0.5] * 8] * 8, "one more list"),
        ([[[0.5] * 8] * 8] * 3, "transpose"),
        ([[[0.5]] * 8] * 8, "grey"),
        ([[[0.5] * 4] * 8] * 8, "transparency"),
        ([], "(0,)"),
        ([[], []], "(2, 0)"),
        ([*square(0.5), [[0.5] * 3] * 7], "[8] has 7 entries"),
        ([*square(0.5)[:7], [[0.5] * 3] * 5 + [[0.5]] + [[0.5] * 3] * 2], "[7][5] has 1 entries"),
        ([*square(0.5), 3], "[8] is not a list"),
    ],
)
def test_anything_else_is_refused_in_words(image: list[Any], words: str) -> None:
    error = refusal(lambda: pixels_from_lists(image, "instances[2]"))
    assert (error.status, error.code) == (422, "bad_array")
    assert error.message.startswith("instances[2]: ")
    assert words in error.message


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ((0, 9, 3), "too_small"),
        ((7, 9, 3), "too_small"),
        ((8, 161, 3), "absurd_shape"),
        ((2**30, 2**30, 3), "too_many_pixels"),
        ((8_001, MAX_PIXELS // 8_000, 3), "too_many_pixels"),
    ],
)
def test_sizes_have_the_limits_of_other_images(shape: tuple[int, ...], code: str) -> None:
    error = refusal(lambda: check_shape(shape, "here"))
    assert (error.status, error.code) == (422, code)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (7, "whole number"),
        (None, "null"),
        ("data:image/png;base64,AAAA", "comma"),
        ("AA\nAA", "line breaks"),
        ("AA-_", "URL-safe"),
        ("AAA", "b64encode"),
        ("AAAA=", "b64encode"),
        ("AA==AA==", "b64encode"),
        ("ÄÄÄÄ", "b64encode"),
    ],
)
def test_base64_is_strict(text: Any, words: str) -> None:
    error = refusal(lambda: blob_of(text, "instances[0].b64"))
    assert (error.status, error.code) == (422, "bad_base64")
    assert words in error.message


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "bad_json"),
        (b"\xff", 400, "bad_json"),
        (b"\xef\xbb\xbf{}", 400, "bad_json"),
        (b"[NaN]", 400, "bad_json"),
        (b"[-Infinity]", 400, "bad_json"),
        (b"[1]x", 400, "bad_json"),
        (b'"\\ud800"', 400, "bad_json"),
        (b"[" * 1000, 400, "bad_json"),
        (b'{"a":' * 60, 400, "bad_json"),
        (b"1" * 10_000_000, 400, "bad_json"),
        (b"[" * 1_000_000, 422, "too_many_lists"),
        (b"[" + b"[]," * 1_000_000 + b"[]]", 422, "too_many_lists"),
        (b"[" + b"{}," * 1_000_000 + b"{}]", 422, "too_many_objects"),
    ],
)
def test_hostile_json_is_refused(body: bytes, status: int, code: str) -> None:
    error = refusal(lambda: parse(body, LIMITS))
    assert (error.status, error.code) == (status, code)
    assert len(error.message) < 300


def test_endless_numbers_are_numbers() -> None:
    assert parse(b"0." + b"1" * 5_000_000, LIMITS) == pytest.approx(1 / 9)
    assert parse(b'{"a": 1, "a": 2}', LIMITS) == {"a": 2}


def seeds() -> list[bytes]:
    """Requests that are right, of all forms."""
    encoded = {"b64": "iVBORw0KGgo="}
    image, small = (pixels(1, 8) // 2 * 2).tolist(), floats(pixels(2, 8)).round(3).tolist()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 8, 8, 3], "data": [small]}
    texts = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["iVBORw0KGgo="]}
    bodies: list[Any] = [
        {"instances": [image, small], "signature_name": "serving_default"},
        {"instances": [encoded, {"image_bytes": encoded}, {"input_1": image}]},
        {"inputs": {"x": [small]}},
        {"id": "1", "inputs": [tensor], "parameters": {"binary_data_output": True}},
        {"inputs": [{**tensor, "data": np.ravel(small).tolist()}], "outputs": [{"name": "label"}]},
        {"inputs": [texts], "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]},
        {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [8, 8, 3], "parameters": {"binary_data_size": 192}}]},
    ]
    return [json.dumps(body).encode() for body in bodies]


WORDS = [b"NaN", b"1e999", b"-1", b"[]", b"{}", b"null", b"true", b'"a"', b"[[", b"]]", b"9" * 30, b"0.5", b"1.0", b","]
WORDS += [
    b'"b64"',
    b'"shape"',
    b'"datatype"',
    b'"BYTES"',
    b'"UINT8"',
    b'{"b64": 3}',
    b"2147483648",
    b":",
    b"\x00",
    b"\xff",
]


def mutated(chance: random.Random, body: bytes) -> bytes:
    """The body with one to four of its pieces cut out, doubled or replaced."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(body) + 1)
        end = min(len(body), start + chance.choice([0, 1, 1, 3, 10, 100]))
        put = chance.choice([b"", body[start:end] * 2, chance.choice(WORDS), bytes([chance.randrange(256)])])
        body = body[:start] + put + body[end:]
    return body


def test_no_mutation_raises_anything_but_an_error_of_the_caller() -> None:
    chance = random.Random(4)
    refused = taken = 0
    for _ in range(600):
        body = mutated(chance, chance.choice(seeds()))
        cut = chance.choice([None, len(body), chance.randrange(len(body) + 2)])
        for decode in (
            lambda body=body: tfserving.decode(body, LIMITS, bare=True),
            lambda body=body, cut=cut: tensors.decode(body, LIMITS, json_bytes=cut),
            lambda body=body: tensors.decode(body + bytes(range(192)), LIMITS, json_bytes=len(body)),
        ):
            try:
                decoded: Any = decode()
            except ApiError as error:
                refused += error.status in (400, 413, 422)
            else:
                assert decoded.images
                assert all(isinstance(one, bytes) or one.dtype == np.uint8 for one in decoded.images)
                taken += 1
    assert refused + taken == 1800
    assert taken > 10


def test_an_encoded_image_may_stand_in_an_object_of_one_entry() -> None:
    import base64

    text = base64.b64encode(picture(1)).decode()
    for image in ({"b64": text}, {"image_bytes": {"b64": text}}, {"anything": {"b64": text}}):
        assert tfserving.decode(json.dumps({"instances": [image]}).encode(), LIMITS).images == [picture(1)]
        assert tfserving.decode(json.dumps({"inputs": image}).encode(), LIMITS).answer == "outputs"
