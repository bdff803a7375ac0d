"""What the protocols' routes share: how OpenAPI describes their paths and their errors."""

from typing import Annotated, Any, Final, TypeAlias

from fastapi import Path
from pydantic import BaseModel, Field

ModelName: TypeAlias = Annotated[
    str, Path(description="The name of the model that this endpoint serves.", examples=["eagleray"])
]
ModelVersion: TypeAlias = Annotated[
    str, Path(description="Always 1: a new model takes the place of the old one.", examples=["1"])
]


class TextError(BaseModel):
    """The error of TensorFlow Serving and of the Open Inference Protocol, whose `error` is a text."""

    error: str = Field(description="For people: what is wrong and what to do.")
    code: str = Field(description="A stable name for programs, such as `bad_array`.")


class RuntimeErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(description="A stable name for programs, such as `bad_array`.")
    message: str = Field(description="For people: what is wrong and what to do.")


class RuntimeErrorAnswer(BaseModel):
    """This endpoint's own error, and its two texts again where AWS clients (boto3) look for them."""

    error: RuntimeErrorDetail
    code: str = Field(description="As in `error`.")
    message: str = Field(description="As in `error`.")


_PROBLEMS: Final = {
    400: "The body is empty, or not JSON.",
    404: "This endpoint serves no model of that name; the error names the one that it serves.",
    408: "The body did not arrive in time.",
    413: "The body is larger, or holds more images, than this endpoint takes.",
    415: "The body is compressed, or of a type that this path does not take.",
    422: "The request or one of its images is not what the protocol asks for; the error says which and why.",
    500: "An error of the server, with a request id to report.",
    503: "No model is ready yet, or too many images wait: try again.",
}

Responses: TypeAlias = dict[int | str, dict[str, Any]]


def problems(model: type[BaseModel], *statuses: int) -> Responses:
    """The errors of a route, for its OpenAPI description."""
    found: Responses = {status: {"model": model, "description": _PROBLEMS[status]} for status in statuses}
    # Without a form: that is for the layer that refuses to say. (It also keeps FastAPI from adding a 422 of its own.)
    return {**found, "4XX": {"description": "Refused before it was looked at: no key (401), wrong key (403), 429."}}


def posted(model: type[BaseModel], *more: int) -> Responses:
    """The errors of a route that reads a body."""
    return problems(model, 400, 408, 413, 415, 422, 500, 503, *more)
