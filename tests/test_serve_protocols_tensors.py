"""Tensors of the Open Inference Protocol that are not what they say."""

from typing import Any

import numpy as np
import pytest

from tests.protocols import INFER, binary, elements, problem, protocol_app, tensor
from tests.serving import Client


@pytest.fixture(scope="module")
def client(tiny_bundle: str) -> Client:
    return Client(protocol_app(tiny_bundle, max_files=4)[1])


IMAGE = tensor("UINT8", [8, 8, 3], [3] * 192)


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        ([], 422, "not_an_object"),
        ({}, 422, "bad_tensor"),
        ({"inputs": []}, 422, "bad_tensor"),
        ({"inputs": [3]}, 422, "bad_tensor"),
        ({"inputs": [IMAGE, IMAGE]}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "id": 7}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "id": "7" * 1025}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "parameters": []}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": {}}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": {"name": "label"}}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": ["label"]}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits"}]}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": [{"name": ["label"]}]}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": [{"name": "label"}] * 2}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": [{"name": "label"}] * 3}, 422, "bad_tensor"),
        ({"inputs": [IMAGE], "outputs": [{"name": "label", "parameters": {"classification": 3}}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "datatype": "FP16"}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "datatype": ["FP32"]}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "shape": 3}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "shape": [8, 8, "3"]}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "shape": [8, 8, True]}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "shape": [8, -8, 3]}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "shape": [10**40, 8, 3]}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "shape": [192]}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "shape": [3, 8, 8]}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "shape": [1, 16, 8, 3]}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "shape": [2**30, 2**30, 3]}]}, 422, "too_many_pixels"),
        ({"inputs": [{**IMAGE, "shape": [4, 4, 3]}]}, 422, "too_small"),
        ({"inputs": [{**IMAGE, "shape": [0, 8, 8, 3]}]}, 422, "no_images"),
        ({"inputs": [{**IMAGE, "shape": [5, 8, 8, 3]}]}, 413, "too_many_images"),
        ({"inputs": [{**IMAGE, "data": {}}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "data": [3] * 191}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "data": [[3] * 96] * 2}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "data": [3.0] * 192}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "data": [300] * 192}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "data": [1] * 192}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "datatype": "FP32"}]}, 422, "bad_array"),
        ({"inputs": [{**IMAGE, "parameters": {"shared_memory_region": "a"}}]}, 422, "bad_tensor"),
        ({"inputs": [{**IMAGE, "parameters": {"binary_data_size": 192}}]}, 422, "bad_tensor"),
        ({"inputs": [tensor("BYTES", [1], ["aGk="])]}, 422, "not_an_image"),
        ({"inputs": [tensor("BYTES", [1], [7])]}, 422, "bad_base64"),
        ({"inputs": [tensor("BYTES", [1, 2], ["aGk=", "aGk="])]}, 422, "bad_tensor"),
        ({"inputs": [tensor("BYTES", [0], [])]}, 422, "no_images"),
    ],
)
def test_what_is_wrong_is_a_text(client: Client, request_body: Any, status: int, code: str) -> None:
    assert problem(client.post(INFER, json=request_body)) == (status, code)


@pytest.mark.parametrize(
    ("said", "raw", "headers", "status", "code"),
    [
        (192, bytes(191), {}, 422, "bad_tensor"),
        (192.0, b"\x07" * 192, {}, 422, "bad_tensor"),
        (True, b"\x07", {}, 422, "bad_tensor"),
        (100, b"\x07" * 100, {}, 422, "bad_tensor"),
        (None, b"\x07" * 192, {}, 422, "bad_tensor"),
        (192, bytes(192), {}, 422, "bad_array"),
        (192, b"\x07" * 192, {"inference-header-content-length": "99999"}, 400, "bad_header"),
        (192, b"\x07" * 192, {"inference-header-content-length": "-1"}, 400, "bad_header"),
        (192, b"\x07" * 192, {"inference-header-content-length": "9" * 400}, 400, "bad_header"),
        (192, b"\x07" * 192, {"inference-header-content-length": "0"}, 400, "bad_json"),
        (192, b"\x07" * 192, {"content-encoding": "deflate"}, 415, "compressed_body"),
    ],
)
def test_binary_tensors_that_lie(
    client: Client, said: Any, raw: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    parameters = {} if said is None else {"binary_data_size": said}
    request = {"inputs": [tensor("UINT8", [8, 8, 3], **parameters)]}
    assert problem(binary(client, request, raw, **headers)) == (status, code)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x01",
        elements(b"a"),
        elements(b"a", b"b", b"c"),
        elements(b"a") + b"\xff\xff\xff\xffb",
        elements(b"a", b"b")[:-1],
    ],
)
def test_binary_elements_that_lie(client: Client, raw: bytes) -> None:
    request = {"inputs": [tensor("BYTES", [2], binary_data_size=len(raw))]}
    assert problem(binary(client, request, raw)) == (422, "bad_tensor")


def test_floats_that_are_not_numbers_are_refused_in_binary_too(client: Client) -> None:
    for value in (np.nan, np.inf, -np.inf, 7.0):
        image = np.full((8, 8, 3), 0.5, "<f4")
        image[2, 2, 2] = value
        request = {"inputs": [tensor("FP32", [1, 8, 8, 3], binary_data_size=image.nbytes)]}
        assert problem(binary(client, request, image.tobytes())) == (422, "bad_array")
