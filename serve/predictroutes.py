"""The endpoint's own routes: images in, labels out; is it ready; what is in service."""

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from serve.answers import ErrorAnswer, HealthAnswer, ModelAnswer, PredictAnswer, model_entry, prediction_entry
from serve.asking import ask
from serve.body import read_uploads
from serve.endpoint import Endpoint

_PREDICT: Final = """Send one image as the raw body, or one or more files as `multipart/form-data` (any field name).

A request that is well-formed is answered 200 with one entry for each image, in order, *also when images fail*: an image
that cannot be read has an `error` in its place and harms no other. This holds for a single image too, so look at the
entry and not at the status alone.
"""

_HEALTHZ: Final = """200 once the model is loaded and has predicted a first image.

While no replica is up (one starts, or its bundle can no longer be read) the proxy in front keeps the request until one
is, or answers 504 or 408 after the time that it gives a request. So give a probe a timeout of a few seconds, and take
no answer in that time for *not ready*. Whether the proxy itself is up says `/-/healthz`.
"""

_IMAGE: dict[str, Any] = {"type": "string", "format": "binary", "description": "One encoded image."}
_PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "description": "JPEG, PNG, WebP, GIF (one frame), TIFF, BMP.",
    "content": {
        # Each content type is read alike: the bytes decide what an image is.
        **{kind: {"schema": _IMAGE} for kind in ("image/*", "application/octet-stream")},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": _IMAGE, "minItems": 1}},
                "required": ["image"],
            }
        },
    },
}
_PREDICT_ERRORS: Final = {
    400: "The body is empty, or not the multipart body that it claims to be.",
    408: "The body did not arrive in time.",
    413: "The body is larger, or holds more images, than this endpoint takes.",
    415: "The body is compressed.",
    422: "The form holds no file, or too many other fields.",
    500: "An error of the server, with a request id to report.",
    503: "No model is ready yet, or too many images wait: try again.",
}


def _errors(described: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": text} for status, text in described.items()}


def router(endpoint: Endpoint) -> APIRouter:
    """`/predict`, `/healthz` and `/model`."""
    routes = APIRouter()

    @routes.post(
        "/predict",
        summary="Label images",
        description=_PREDICT,
        response_model=None,
        responses={200: {"model": PredictAnswer}, **_errors(_PREDICT_ERRORS)},
        openapi_extra={"requestBody": _PREDICT_BODY},
    )
    async def predict(request: Request) -> JSONResponse:
        uploads = await read_uploads(request, endpoint.ready().config)
        answered = await ask(endpoint, request, [upload.image for upload in uploads])
        classes = answered.info.classes
        pairs = zip(uploads, answered.answers, strict=True)
        entries = [prediction_entry(upload, answer, classes) for upload, answer in pairs]
        return JSONResponse({"model": answered.info.id, "predictions": entries})

    @routes.get(
        "/healthz",
        summary="Is it ready?",
        description=_HEALTHZ,
        response_model=None,
        responses={200: {"model": HealthAnswer}, **_errors({503: "No model is ready yet."})},
    )
    @routes.head("/healthz", include_in_schema=False)
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok", "model": endpoint.ready().info.id})

    @routes.get(
        "/model",
        summary="What is in service?",
        response_model=None,
        responses={200: {"model": ModelAnswer}, **_errors({503: "No model is ready yet."})},
    )
    async def model() -> JSONResponse:
        return JSONResponse(model_entry(endpoint.ready().info))

    return routes


def predict_route(endpoint: Endpoint) -> APIRoute:
    """The route of `/predict` alone, for `ShortPath`."""
    return next(one for one in router(endpoint).routes if isinstance(one, APIRoute) and one.path == "/predict")
