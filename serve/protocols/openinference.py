"""The Open Inference Protocol v2 over HTTP, as KServe and Triton speak it.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from functools import partial
from typing import Any, Final

import pydantic_core
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from serve.endpoint import Endpoint, Loaded
from serve.errors import ApiError
from serve.protocols.answering import VERSION, loaded_as, predicted
from serve.protocols.jsonbody import read_decoded
from serve.protocols.shapes import ModelName, ModelVersion, TextError, posted, problems
from serve.protocols.tensors import DATATYPES, OUTPUTS, decode, output_tensor
from serve.protocols.tfserving import EXAMPLE_B64

_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_INPUT: Final = "image"

_ABOUT = f"""One input tensor holds all images of the request: {", ".join(DATATYPES)} of shape (N, height, width, 3) or
(height, width, 3), floats from 0 to 1 or integers from 0 to 255, or BYTES of shape (N) with encoded images, in JSON as
standard base64. Its name does not matter. The outputs are `probabilities`, FP32 (N, classes), and `label`, BYTES (N).

Triton's binary extension is understood: tensors may follow the JSON, whose length is then in `{_HEADER_LENGTH}`, and
`binary_data_output` or an output's `binary_data` asks for an answer of that form.
"""


class InferParameters(BaseModel):
    """What is said beside the tensors."""

    model: str = Field(description="The id of the model that answered, as in `/model`.")


class OutputTensor(BaseModel):
    """One output."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | list[str] | None = Field(default=None, description="Row by row; absent if it follows as bytes.")
    parameters: dict[str, int] | None = Field(default=None, description="`binary_data_size`, if it follows as bytes.")


class InferAnswer(BaseModel):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = Field(default=None, description="That of the request, if it had one.")
    parameters: InferParameters
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """A tensor that the model takes or gives."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is any size.")


class ModelMetadataAnswer(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadataAnswer(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class LiveAnswer(BaseModel):
    """The server runs."""

    live: bool


class ReadyAnswer(BaseModel):
    """The server can answer."""

    live: bool
    ready: bool


class ModelReadyAnswer(BaseModel):
    """The model can answer."""

    name: str
    ready: bool


_TENSOR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": [*DATATYPES, "BYTES"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 4},
        "data": {"type": "array", "description": "Flat, or nested as the shape says."},
        "parameters": {"type": "object"},
    },
    "required": ["name", "datatype", "shape"],
}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "enum": list(OUTPUTS)}, "parameters": {"type": "object"}},
    "required": ["name"],
}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "id": {"type": "string", "maxLength": 1024},
                    "parameters": {"type": "object"},
                    "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
                    "outputs": {"type": "array", "items": _OUTPUT, "maxItems": len(OUTPUTS)},
                },
                "required": ["inputs"],
            },
            "example": {"inputs": [{"name": _INPUT, "datatype": "BYTES", "shape": [1], "data": [EXAMPLE_B64]}]},
        },
        "application/octet-stream": {
            "schema": {"type": "string", "format": "binary", "description": f"JSON, then tensors; {_HEADER_LENGTH}."}
        },
    },
}
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _answers(model: type[BaseModel], *statuses: int) -> dict[str, Any]:
    return {"response_model": None, "responses": {200: {"model": model}, **problems(TextError, *statuses)}}


def router(endpoint: Endpoint) -> APIRouter:
    """/v2, /v2/health/live, /v2/health/ready, and /v2/models/NAME[/versions/1][/ready or /infer]."""
    routes = APIRouter(tags=["Open Inference Protocol v2"])
    _add_server(routes, endpoint)
    _add_model(routes, endpoint)
    described: dict[str, Any] = {
        "description": _ABOUT,
        "response_model": None,
        "responses": {200: {"model": InferAnswer, "content": _BINARY}, **posted(TextError, 404)},
        "openapi_extra": {"requestBody": _BODY},
    }

    @routes.post("/v2/models/{name}/infer", summary="Predict, as KServe and Triton do", **described)
    async def infer(request: Request, name: ModelName) -> Response:
        return await _infer(endpoint, request, loaded_as(endpoint, name))

    @routes.post("/v2/models/{name}/versions/{version}/infer", summary="The same with a version", **described)
    async def infer_version(request: Request, name: ModelName, version: ModelVersion) -> Response:
        return await _infer(endpoint, request, loaded_as(endpoint, name, version))

    return routes


def _add_server(routes: APIRouter, endpoint: Endpoint) -> None:
    @routes.get("/v2", summary="What is this server?", **_answers(ServerMetadataAnswer))
    @routes.get("/v2/", include_in_schema=False)  # as the protocol's own OpenAPI document has it
    async def server(request: Request) -> JSONResponse:
        return JSONResponse({"name": "eagleray", "version": request.app.version, "extensions": ["binary_tensor_data"]})

    @routes.get("/v2/health/live", summary="Does the server run?", **_answers(LiveAnswer))
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @routes.get("/v2/health/ready", summary="Is it ready?", **_answers(ReadyAnswer, 503))
    async def ready() -> JSONResponse:
        endpoint.ready()
        # The specification says `live` here, KServe answers `ready`; clients look at the status.
        return JSONResponse({"live": True, "ready": True})


def _add_model(routes: APIRouter, endpoint: Endpoint) -> None:
    again = "The same with a version"

    @routes.get("/v2/models/{name}", summary="What does the model take?", **_answers(ModelMetadataAnswer, 404, 503))
    async def model(name: ModelName) -> JSONResponse:
        return JSONResponse(_metadata(loaded_as(endpoint, name)))

    @routes.get("/v2/models/{name}/versions/{version}", summary=again, **_answers(ModelMetadataAnswer, 404, 503))
    async def model_version(name: ModelName, version: ModelVersion) -> JSONResponse:
        return JSONResponse(_metadata(loaded_as(endpoint, name, version)))

    @routes.get("/v2/models/{name}/ready", summary="Is the model ready?", **_answers(ModelReadyAnswer, 404, 503))
    async def model_ready(name: ModelName) -> JSONResponse:
        return JSONResponse({"name": loaded_as(endpoint, name).config.name, "ready": True})

    @routes.get("/v2/models/{name}/versions/{version}/ready", summary=again, **_answers(ModelReadyAnswer, 404, 503))
    async def model_version_ready(name: ModelName, version: ModelVersion) -> JSONResponse:
        return JSONResponse({"name": loaded_as(endpoint, name, version).config.name, "ready": True})


def _metadata(loaded: Loaded) -> dict[str, Any]:
    # The protocol has one datatype for each input; the others that `infer` takes are in its description.
    image = {"name": _INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
    probabilities = {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(loaded.info.classes)]}
    label = {"name": "label", "datatype": "BYTES", "shape": [-1]}
    return {
        "name": loaded.config.name,
        "versions": [VERSION],
        "platform": f"eagleray_{loaded.info.engine}",
        "inputs": [image],
        "outputs": [probabilities, label],
    }


async def _infer(endpoint: Endpoint, request: Request, loaded: Loaded) -> Response:
    limits = loaded.config
    read = partial(decode, limits=limits, json_bytes=_json_bytes(request))
    inference = await read_decoded(request, limits, read, 'the body is empty: send {"inputs": [...]} as JSON')
    found = await predicted(endpoint, request, inference.images)
    labels = [prediction.label for prediction in found.predictions]
    tensors = [output_tensor(wanted, found.probabilities, labels) for wanted in inference.outputs]
    answer = {
        "model_name": loaded.config.name,
        "model_version": VERSION,
        **({} if inference.id is None else {"id": inference.id}),
        "parameters": {"model": found.info.id},
        "outputs": [entry for entry, _ in tensors],
    }
    if not any(wanted.binary for wanted in inference.outputs):
        return JSONResponse(answer)
    head = pydantic_core.to_json(answer)
    body = b"".join([head, *(raw for _, raw in tensors)])
    return Response(body, headers={_HEADER_LENGTH: str(len(head))}, media_type="application/octet-stream")


def _json_bytes(request: Request) -> int | None:
    given = request.headers.get(_HEADER_LENGTH)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 12):
        raise ApiError(400, "bad_header", f"{_HEADER_LENGTH} must be the length of the JSON in bytes")
    return int(given)
