"""The tensors of the Open Inference Protocol v2: a request's body to images, predictions to output tensors.

Also Triton's binary extension, in which tensors follow the JSON as little-endian bytes: its clients use it unless told
otherwise. https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import math
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serve.endpoint import Image
from serve.errors import ApiError
from serve.protocols.arrays import Numbers, as_pixels, bad_array, check_shape, flatten, numbers_of
from serve.protocols.encoded import blob_of
from serve.protocols.jsonbody import kind_of, parse_object
from serve.settings import EndpointConfig

DATATYPES: Final = {"UINT8": "u1", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
OUTPUTS: Final = ("probabilities", "label")
_BINARY_SIZE: Final = "binary_data_size"
_WANTED: Final = 'an object with "inputs"'
_MAX_ID: Final = 1024


@dataclass(frozen=True)
class Wanted:
    """An output tensor that the client asks for."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Inference:
    """A request, decoded."""

    images: list[Image]
    id: str | None
    outputs: tuple[Wanted, ...]


def bad_tensor(problem: str) -> ApiError:
    return ApiError(422, "bad_tensor", problem)


def decode(body: bytes, limits: EndpointConfig, *, json_bytes: int | None = None) -> Inference:
    """A request's body. ApiError 400, 413 or 422, and no other exception, whatever the bytes are.

    json_bytes: how much of the body is JSON, where binary tensors follow it; None if all of it is.
    """
    if json_bytes is not None and json_bytes > len(body):
        problem = f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes"
        raise ApiError(400, "bad_header", problem)
    request = parse_object(body if json_bytes is None else body[:json_bytes], limits, _WANTED)
    binary = b"" if json_bytes is None else body[json_bytes:]
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise bad_tensor("inputs: send a list with one tensor, which holds all images of the request")
    request_id = request.get("id")
    if request_id is not None and (not isinstance(request_id, str) or len(request_id) > _MAX_ID):
        raise bad_tensor(f"id: send a text of at most {_MAX_ID} characters")
    return Inference(_images(inputs[0], binary, limits), request_id, _outputs(request))


def _images(tensor: dict[str, Any], binary: bytes, limits: EndpointConfig) -> list[Image]:
    datatype, shape = tensor.get("datatype"), _shape(tensor.get("shape"))
    if not isinstance(datatype, str) or datatype not in (*DATATYPES, "BYTES"):
        raise bad_tensor(f"inputs[0].datatype: send one of {', '.join(DATATYPES)} (pixels), BYTES (encoded images)")
    _check_shape(shape, datatype)
    count = 1 if len(shape) == 3 else shape[0]
    if count > limits.max_files:
        message = (
            f"the tensor holds {count} images, at most {limits.max_files} are taken: send them in several requests"
        )
        raise ApiError(413, "too_many_images", message)
    if not count:
        raise ApiError(422, "no_images", "the tensor's first dimension is 0: send at least one image")
    parameters = _parameters(tensor, "inputs[0]")
    if any(name.startswith("shared_memory") for name in parameters):
        raise bad_tensor("inputs[0].parameters: shared memory is not supported: send the tensor in the body")
    size = parameters.get(_BINARY_SIZE)
    if size is None:
        if binary:
            raise bad_tensor(f"bytes follow the JSON, but inputs[0].parameters has no {_BINARY_SIZE}")
        return _from_json(tensor.get("data"), datatype, shape)
    if type(size) is not int or size != len(binary):
        raise bad_tensor(f"inputs[0].parameters.{_BINARY_SIZE} is not the {len(binary)} bytes that follow the JSON")
    if "data" in tensor:
        raise bad_tensor(f"inputs[0] has both data and {_BINARY_SIZE}: send one")
    return _from_binary(binary, datatype, shape)


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4 or any(type(size) is not int for size in shape):
        raise bad_tensor("inputs[0].shape: send a list of 1 to 4 integers, such as [1, 224, 224, 3]")
    if not all(0 <= size < 2**31 for size in shape):
        raise bad_tensor("inputs[0].shape: a dimension is negative or above 2147483647")
    return tuple(shape)


def _parameters(holder: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise bad_tensor(f"{where}.parameters is {kind_of(parameters)}: send an object")
    return parameters or {}


def _from_json(data: Any, datatype: str, shape: tuple[int, ...]) -> list[Image]:
    where = "inputs[0].data"
    if not isinstance(data, list):
        raise bad_tensor(f"{where}: send a list of {math.prod(shape)} values, flat or nested as the shape says")
    leaves, found = flatten(data, where)
    if found != shape and found != (math.prod(shape),):
        raise bad_array(where, f"has the shape {found}, not {shape} as inputs[0].shape says, nor is it flat")
    if datatype == "BYTES":
        return [blob_of(text, f"{where}[{number}]") for number, text in enumerate(leaves)]
    numbers = numbers_of(leaves, where)
    if datatype.startswith("FP"):
        numbers = numbers.astype(np.float64)  # the datatype says what a 1 without a point is
    elif numbers.dtype.kind == "f":
        raise bad_array(where, f"holds floats, but the datatype is {datatype}: send FP32 in 0 to 1, or integers")
    return _pixels(numbers, shape)


def _from_binary(binary: bytes, datatype: str, shape: tuple[int, ...]) -> list[Image]:
    if datatype == "BYTES":
        return list[Image](_elements(binary, math.prod(shape)))
    dtype = np.dtype(DATATYPES[datatype])
    if len(binary) != math.prod(shape) * dtype.itemsize:
        needed = math.prod(shape) * dtype.itemsize
        raise bad_tensor(f"{datatype} of shape {shape} needs {needed} bytes, {len(binary)} follow the JSON")
    return _pixels(np.frombuffer(binary, dtype), shape)


def _check_shape(shape: tuple[int, ...], datatype: str) -> None:
    if datatype == "BYTES":
        if len(shape) > 2 or math.prod(shape) != shape[0]:
            raise bad_tensor(f"inputs[0].shape {shape}: in BYTES each element is an encoded image: send [N] or [N, 1]")
    elif len(shape) not in (3, 4):
        raise bad_array("inputs[0]", f"has the shape {shape}, expected (N, height, width, 3)")
    else:
        check_shape(shape[-3:], "inputs[0], each image")


def _pixels(numbers: Numbers, shape: tuple[int, ...]) -> list[Image]:
    images = numbers.reshape((-1, *shape[-3:]))
    return [as_pixels(image, f"inputs[0], image {number}") for number, image in enumerate(images)]


def _elements(binary: bytes, count: int) -> list[bytes]:
    """Each element is its length in four bytes, then its bytes."""
    found, start = list[bytes](), 0
    while start < len(binary) and len(found) < count:
        if start + 4 > len(binary):
            break
        (length,) = struct.unpack_from("<I", binary, start)
        if start + 4 + length > len(binary):
            raise bad_tensor(f"element {len(found)} says {length} bytes, {len(binary) - start - 4} are left")
        found.append(binary[start + 4 : start + 4 + length])
        start += 4 + length
    if len(found) != count or start != len(binary):
        raise bad_tensor(f"the binary BYTES tensor does not hold the {count} elements of its shape, and no more")
    return found


def _outputs(request: dict[str, Any]) -> tuple[Wanted, ...]:
    binary = _parameters(request, "the request").get("binary_data_output", False) is True
    asked = request.get("outputs")
    if asked is None or asked == []:
        return tuple(Wanted(name, binary) for name in OUTPUTS)
    if not isinstance(asked, list) or len(asked) > len(OUTPUTS) or not all(isinstance(one, dict) for one in asked):
        raise bad_tensor(f"outputs: send a list of {' and '.join(OUTPUTS)}, each at most once")
    wanted = [_wanted(one, f"outputs[{number}]", binary) for number, one in enumerate(asked)]
    if len({one.name for one in wanted}) < len(wanted):
        raise bad_tensor(f"outputs: {wanted[0].name!r} stands there twice")
    return tuple(wanted)


def _wanted(asked: dict[str, Any], where: str, binary: bool) -> Wanted:
    parameters = _parameters(asked, where)
    if "classification" in parameters or any(name.startswith("shared_memory") for name in parameters):
        raise bad_tensor(f"{where}.parameters: neither classification nor shared memory is supported: leave it out")
    if asked.get("name") not in OUTPUTS:
        raise bad_tensor(f"{where}.name: this model's outputs are {' and '.join(OUTPUTS)}")
    return Wanted(str(asked["name"]), parameters.get("binary_data", binary) is True)


def output_tensor(wanted: Wanted, probabilities: list[list[float]], labels: list[str]) -> tuple[dict[str, Any], bytes]:
    """One output as its JSON, and the bytes that follow the JSON where the client asked for binary data."""
    entry: dict[str, Any]
    if wanted.name == "label":
        entry = {"name": "label", "datatype": "BYTES", "shape": [len(labels)]}
        data: list[Any] = labels
    else:
        entry = {"name": wanted.name, "datatype": "FP32", "shape": [len(probabilities), len(probabilities[0])]}
        data = [value for row in probabilities for value in row]
    if not wanted.binary:
        return {**entry, "data": data}, b""
    if wanted.name == "label":
        raw = b"".join(struct.pack("<I", len(text)) + text for text in (label.encode() for label in labels))
    else:
        raw = np.array(data, "<f4").tobytes()
    return {**entry, "parameters": {_BINARY_SIZE: len(raw)}}, raw
