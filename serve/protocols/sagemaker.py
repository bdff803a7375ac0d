"""Amazon SageMaker: what its containers answer (/invocations, /ping) and what its runtime's clients call.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html and the InvokeEndpoint operation of
the SageMaker Runtime API. The types and the verbose form are those of its built-in image classifiers.
"""

from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from serve.body import read_body
from serve.endpoint import Endpoint, Loaded
from serve.errors import ApiError
from serve.protocols.answering import Predicted, loaded_as, predicted
from serve.protocols.shapes import ModelName, RuntimeErrorAnswer, posted, problems
from serve.protocols.tfserving import JSON_SCHEMA, PredictionsAnswer, predict_json

_IMAGE_TYPES: Final = ("image/jpeg", "image/png", "application/x-image")
_JSON: Final = "application/json"
_VARIANT: Final = "x-amzn-invoked-production-variant"
"""Where AWS's clients read which variant of a model answered: for us, its id."""

_ABOUT = f"""Send one encoded image with the Content-Type {", ".join(_IMAGE_TYPES)} and get the list of probabilities of
the classes, in the order of `/model`; with `Accept: application/json;verbose` an object with `probabilities`, `labels`
and `predicted_label`.

Or send `application/json` as TensorFlow Serving takes it (`/v1/models/NAME:predict`), `{{"instances": [...]}}` or that
list alone, and get `{{"predictions": [[p, ...], ...]}}`.
"""


class VerboseAnswer(BaseModel):
    """One image's answer to `Accept: application/json;verbose`."""

    probabilities: list[float] = Field(description="Of each class; they sum to 1.")
    labels: list[str] = Field(description="The classes, in the same order.")
    predicted_label: str = Field(description="The class with the highest probability.")


def router(endpoint: Endpoint) -> APIRouter:
    """POST /invocations, POST /endpoints/NAME/invocations and GET /ping."""
    routes = APIRouter(tags=["Amazon SageMaker"])
    image = {"schema": {"type": "string", "format": "binary", "description": "One encoded image."}}
    content = {**dict.fromkeys(_IMAGE_TYPES, image), _JSON: JSON_SCHEMA}
    described: dict[str, Any] = {
        "description": _ABOUT,
        "response_model": None,
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }
    answer = {"model": list[float] | VerboseAnswer | PredictionsAnswer}

    @routes.post(
        "/invocations",
        summary="Predict, as a SageMaker container does",
        responses={200: answer, **posted(RuntimeErrorAnswer)},
        **described,
    )
    async def invocations(request: Request) -> JSONResponse:
        return await _invoke(endpoint, request, endpoint.ready())

    @routes.post(
        "/endpoints/{name}/invocations",
        summary="Predict, as SageMaker's runtime does",
        responses={200: answer, **posted(RuntimeErrorAnswer, 404)},
        **described,
    )
    async def invoke_endpoint(request: Request, name: ModelName) -> JSONResponse:
        return await _invoke(endpoint, request, loaded_as(endpoint, name))

    @routes.get(
        "/ping",
        summary="Is it ready?",
        response_class=Response,
        responses={200: {"description": "Ready; the body is empty."}, **problems(RuntimeErrorAnswer, 503)},
    )
    async def ping() -> Response:
        endpoint.ready()
        return Response()

    return routes


async def _invoke(endpoint: Endpoint, request: Request, loaded: Loaded) -> JSONResponse:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _JSON:
        member, found = await predict_json(endpoint, request, loaded, bare=True)
        return JSONResponse({member: found.probabilities}, headers={_VARIANT: found.info.id})
    if kind not in _IMAGE_TYPES:
        problem = f"{kind[:64]!r} is not taken" if kind else "the request has no Content-Type"
        raise ApiError(415, "unsupported_type", f"{problem}: send {', '.join(_IMAGE_TYPES)} or {_JSON}")
    body = await read_body(request, loaded.config, "the body is empty: send an encoded image as the body")
    found = await predicted(endpoint, request, [body])
    verbose = _verbose(request.headers.get("accept", ""))
    answer = _verbose_entry(found) if verbose else found.probabilities[0]
    return JSONResponse(answer, headers={_VARIANT: found.info.id})


def _verbose(accept: str) -> bool:
    """`application/json;verbose` anywhere in the header. What else it asks for, the answer is JSON."""
    for choice in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in choice.split(";"))
        if kind in (_JSON, "*/*", "application/*") and any(one.partition("=")[0] == "verbose" for one in parameters):
            return True
    return False


def _verbose_entry(found: Predicted) -> dict[str, Any]:
    (prediction,) = found.predictions
    return {
        "probabilities": list(prediction.probabilities),
        "labels": list(found.info.classes),
        "predicted_label": prediction.label,
    }
