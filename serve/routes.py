"""The endpoint's HTTP put together: all routes, the form of errors, and the OpenAPI document that says so."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve import pages, predictroutes
from serve.answers import ErrorAnswer
from serve.corrections import correctionroutes
from serve.door.access import is_open_path
from serve.endpoint import Endpoint
from serve.errors import install_error_handlers
from serve.promotion import promotionroutes
from serve.protocols import openinference, sagemaker, tfserving

_ABOUT: Final = """Send an image, get its label.

A request brings a key: `Authorization: Bearer KEY`. Every error has the form `{"error": {"code", "message"}}`; on the
paths of other protocols (`/v1`, `/v2`, `/invocations`, `/endpoints`) it has the form that theirs has. What stands in
front answers some requests itself, some of them in plain text: look at the status before you parse the body. 408 when a
body does not arrive in time; 429 with `Retry-After` under overload; 500 when the replica that worked on the request
died; 503 when no replica can take it; 504 when the answer takes too long. These are worth another try after a pause.

An answer has an `x-request-id`, yours or a new one, and an `x-model-id` where a model answered; what stands in front
gives neither.
"""
_KEY: Final = {"key": {"type": "http", "scheme": "bearer", "description": "Made with `python serve/keys.py add NAME`."}}
_REFUSED: Final = {
    "400": "Two keys in one request, or a body that cannot be read.",
    "401": "No key.",
    "403": "A key that is not known here.",
    "413": "A signed request whose body is too large.",
    "429": "More requests than the key or the endpoint allows; `Retry-After` says when to come back.",
    "500": "An error of the server, with a request id to report.",
}


def build_api(endpoint: Endpoint) -> FastAPI:
    """The routes around one endpoint, without keys and counting: `application.py` puts those around them."""
    # FastAPI's own documentation pages load their scripts from elsewhere; `pages.py` has one that does not.
    # No redirects for a slash too many: they would lead to whatever host the request names.
    api = _Described(
        title="eagleray", description=_ABOUT, version="1", redoc_url=None, docs_url=None, redirect_slashes=False
    )
    install_error_handlers(api)
    for part in (predictroutes, sagemaker, tfserving, openinference, correctionroutes, promotionroutes, pages):
        api.include_router(part.router(endpoint))
    return api


class _Described(FastAPI):
    """Says in its OpenAPI document what the layer outside it does: keys, and how it refuses."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            document.setdefault("components", {})["securitySchemes"] = _KEY
            for path, operations in document["paths"].items():
                if not is_open_path(path):
                    for operation in operations.values():
                        _closed(operation)
            self.openapi_schema = document
        return self.openapi_schema


def _closed(operation: dict[str, Any]) -> None:
    operation["security"] = [{"key": []}]
    form = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}
    answers = operation["responses"]
    own_form = "4XX" not in answers  # the protocols' routes describe these in their own form
    for status, text in _REFUSED.items():
        if own_form and status not in answers:
            answers[status] = {"description": text, "content": form}
