"""TensorFlow Serving's REST API: https://www.tensorflow.org/tfx/serving/api_rest (predict and model status)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import Request

from serve.endpoint import Endpoint, Image, Loaded
from serve.errors import ApiError
from serve.protocols.answering import VERSION, Predicted, loaded_as, predicted
from serve.protocols.arrays import pixels_from_lists
from serve.protocols.encoded import blob_of
from serve.protocols.jsonbody import kind_of, parse, read_decoded
from serve.protocols.shapes import ModelName, ModelVersion, TextError, posted, problems
from serve.settings import EndpointConfig

EMPTY: Final = 'the body is empty: send {"instances": [...]} as JSON'
_WANTED: Final = 'send {"instances": [...]} or {"inputs": [...]}'
_SIGNATURES: Final = ("serving_default", "", None)

_ABOUT = """Send images as `{"instances": [...]}` and get `{"predictions": [[p, ...], ...]}`, the probabilities of the
classes in the order of `/model`; or as `{"inputs": [...]}`, answered `{"outputs": ...}`.

Each image is a list (height, width, 3) of floats from 0 to 1 or of integers from 0 to 255, of any size, or an encoded
image as `{"b64": "..."}` in standard base64. Either may stand in an object of one entry, whatever its name:
`{"image_bytes": {"b64": "..."}}`. Numbers of another range are refused, never guessed at. `signature_name` may be
`serving_default`. One image that fails makes the request 422; `/predict` would answer the others.
"""

# A blue 8x8 PNG, so that the example in the OpenAPI document is one that works.
EXAMPLE_B64: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mMUCVjAgA0wMeAAg1MCAM+UARQ5aVcDAAAAAElFTkSuQmCC"
)
_IMAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {"anyOf": [{"type": "array", "minItems": 8}, {"type": "object", "minProperties": 1, "maxProperties": 1}]},
}
JSON_SCHEMA: Final[dict[str, Any]] = {
    "schema": {
        "type": "object",
        "properties": {
            "signature_name": {"type": "string", "enum": ["serving_default"]},
            "instances": {**_IMAGES, "description": "The images: (N, height, width, 3), or encoded ones."},
            "inputs": {"description": "The same in columns: a list of images, or an object that holds one such list."},
        },
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "example": {"instances": [{"b64": EXAMPLE_B64}]},
}


class PredictionsAnswer(BaseModel):
    """The answer to `instances`."""

    predictions: list[list[float]] = Field(
        description="For each image the probabilities of all classes; they sum to 1."
    )


class OutputsAnswer(BaseModel):
    """The answer to `inputs`."""

    outputs: list[list[float]] = Field(description="For each image the probabilities of all classes; they sum to 1.")


class VersionStatusDetail(BaseModel):
    """Whether the model could be loaded."""

    error_code: str
    error_message: str


class VersionStatus(BaseModel):
    """The state of one version."""

    version: str
    state: str = Field(description="Always `AVAILABLE`; an endpoint without a model answers 503.")
    status: VersionStatusDetail


class ModelStatusAnswer(BaseModel):
    """The state of the model."""

    model_version_status: list[VersionStatus]


@dataclass(frozen=True)
class Batch:
    """The images of one request, and the member under which the answer is expected."""

    images: list[Image]
    answer: str
    """`predictions` or `outputs`."""


def router(endpoint: Endpoint) -> APIRouter:
    """POST /v1/models/NAME:predict and GET /v1/models/NAME, both also with /versions/1."""
    routes = APIRouter(tags=["TensorFlow Serving"])
    answers = {200: {"model": PredictionsAnswer | OutputsAnswer}, **posted(TextError, 404)}
    described: dict[str, Any] = {"description": _ABOUT, "response_model": None, "responses": answers}
    described["openapi_extra"] = {"requestBody": {"required": True, "content": {"application/json": JSON_SCHEMA}}}

    @routes.post("/v1/models/{name}:predict", summary="Predict, as TensorFlow Serving does", **described)
    async def predict(request: Request, name: ModelName) -> JSONResponse:
        return await _answer(endpoint, request, loaded_as(endpoint, name))

    @routes.post("/v1/models/{name}/versions/{version}:predict", summary="The same with a version", **described)
    async def predict_version(request: Request, name: ModelName, version: ModelVersion) -> JSONResponse:
        return await _answer(endpoint, request, loaded_as(endpoint, name, version))

    status_described: dict[str, Any] = {
        "response_model": None,
        "responses": {200: {"model": ModelStatusAnswer}, **problems(TextError, 404, 503)},
    }

    @routes.get("/v1/models/{name}", summary="The model's status", **status_described)
    async def status(name: ModelName) -> JSONResponse:
        return JSONResponse(_status(endpoint, name, VERSION))

    @routes.get("/v1/models/{name}/versions/{version}", summary="The same with a version", **status_described)
    async def status_version(name: ModelName, version: ModelVersion) -> JSONResponse:
        return JSONResponse(_status(endpoint, name, version))

    return routes


async def predict_json(
    endpoint: Endpoint, request: Request, loaded: Loaded, *, bare: bool = False
) -> tuple[str, Predicted]:
    """Read a JSON body of this protocol and predict; also the member under which the answer is expected."""
    limits = loaded.config
    batch = await read_decoded(request, limits, partial(decode, limits=limits, bare=bare), EMPTY)
    return batch.answer, await predicted(endpoint, request, batch.images)


async def _answer(endpoint: Endpoint, request: Request, loaded: Loaded) -> JSONResponse:
    member, found = await predict_json(endpoint, request, loaded)
    return JSONResponse({member: found.probabilities})


def decode(body: bytes, limits: EndpointConfig, *, bare: bool = False) -> Batch:
    """A request's JSON to images. ApiError 400, 413 or 422, and no other exception, whatever the bytes are.

    bare: a list alone stands for `instances`, as SageMaker's TensorFlow containers read it.
    """
    value = parse(body, limits)
    if bare and isinstance(value, list):
        return Batch(_images(value, "instances", limits), "predictions")
    if not isinstance(value, dict):
        raise ApiError(422, "not_an_object", f"the body is {kind_of(value)}: {_WANTED}")
    if value.get("signature_name") not in _SIGNATURES:
        raise ApiError(422, "unknown_signature", "signature_name: this model has only 'serving_default'")
    if ("instances" in value) == ("inputs" in value):
        many = "both" if "inputs" in value else "neither"
        raise ApiError(422, "no_instances", f"the body has {many} of 'instances' and 'inputs': {_WANTED}")
    if "instances" in value:
        return Batch(_images(value["instances"], "instances", limits), "predictions")
    return Batch(_images(_column(value["inputs"]), "inputs", limits), "outputs")


def _column(inputs: Any) -> Any:
    """`inputs` is the column itself, or an object that names the only one."""
    if isinstance(inputs, dict) and len(inputs) == 1 and "b64" not in inputs:
        (inputs,) = inputs.values()
    return [inputs] if isinstance(inputs, dict) else inputs


def _images(values: Any, where: str, limits: EndpointConfig) -> list[Image]:
    if not isinstance(values, list):
        raise ApiError(422, "bad_array", f"{where} is {kind_of(values)}: send a list of images")
    if not values:
        raise ApiError(422, "no_images", f"{where} is empty: send at least one image")
    if len(values) > limits.max_files:
        message = f"{where} holds {len(values)} entries, at most {limits.max_files} images are taken in a request"
        raise ApiError(413, "too_many_images", f"{message}: send them in several (one image needs a list around it)")
    return [_image(value, f"{where}[{number}]") for number, value in enumerate(values)]


def _image(value: Any, where: str) -> Image:
    if isinstance(value, dict) and len(value) == 1 and "b64" not in value:
        ((name, value),) = value.items()
        where = f"{where}.{name[:64]}"
    if isinstance(value, list):
        return pixels_from_lists(value, where)
    if isinstance(value, dict) and value.keys() == {"b64"}:
        return blob_of(value["b64"], f"{where}.b64")
    message = f"{where} is {kind_of(value)}: send a list (height, width, 3) of numbers, or {{'b64': '...'}}"
    raise ApiError(422, "bad_array", message)


def _status(endpoint: Endpoint, name: str, version: str) -> dict[str, Any]:
    if name.endswith(":predict") or version.endswith(":predict"):
        # The path of another route, which takes another method; to this one it looks like a name.
        raise ApiError(405, "method_not_allowed", "GET is not allowed on this path: use POST", {"allow": "POST"})
    loaded_as(endpoint, name, version)
    status = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": VERSION, "state": "AVAILABLE", "status": status}]}
