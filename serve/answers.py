"""What the endpoint answers, as the OpenAPI document describes it."""

import math
from typing import Any

from pydantic import BaseModel, Field

from data.images import Failure
from models.bundle import BundleInfo
from serve.body import Upload
from serve.endpoint import Answer


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(description="A stable name for programs, such as `truncated` or `body_too_large`.")
    message: str = Field(description="For people: what is wrong and what to do.")


class ErrorAnswer(BaseModel):
    """The form of every error of this endpoint."""

    error: ErrorDetail


class ImagePrediction(BaseModel):
    """What one image shows."""

    label: str = Field(description="The class with the highest probability.")
    probability: float = Field(description="Its probability, 0 to 1, calibrated on the validation images.")
    probabilities: dict[str, float] = Field(description="The probability of every class; they sum to 1.")
    confident: bool | None = Field(
        description="True where the probability is so high that the model was right for at least 95 % of such "
        "validation images; null if the model promises that of no probability."
    )
    file: str | None = Field(default=None, description="The file name in the multipart body; absent for a raw body.")


class ImageFailure(BaseModel):
    """Why one image has no prediction. The other images of the request are not affected."""

    error: ErrorDetail
    file: str | None = Field(default=None, description="The file name in the multipart body; absent for a raw body.")


class PredictAnswer(BaseModel):
    """One entry for each image, in the order in which they were sent."""

    model: str = Field(description="The id of the model that answered, as in `/model`.")
    predictions: list[ImagePrediction | ImageFailure]


class HealthAnswer(BaseModel):
    """The endpoint has loaded its model and predicted with it."""

    status: str = Field(description="Always `ok`; an endpoint that is not ready answers 503.")
    model: str = Field(description="The id of the model in service.")


class ModelAnswer(BaseModel):
    """What is in service."""

    id: str = Field(description="Changes with the weights; every answer of `/predict` carries it.")
    classes: list[str] = Field(description="The labels, sorted by name.")
    engine: str = Field(description="What computes the network, and computed its scores.")
    architecture: dict[str, Any] = Field(description="The network and the settings that shape it.")
    preprocessing: dict[str, Any] = Field(description="How an image becomes the network's input.")
    scores: dict[str, Any] = Field(description="How good it was on images that it had not seen, with 95 % intervals.")
    temperature: float = Field(description="Divides the network's outputs so that probabilities mean what they say.")
    thresholds: dict[str, float | None] = Field(description="Probabilities from which an answer counts as confident.")
    fingerprints: dict[str, str] = Field(description="Hashes of the data, split, code and weights behind it.")
    created: str = Field(description="When it was trained.")


def prediction_entry(upload: Upload, answer: Answer, classes: tuple[str, ...]) -> dict[str, Any]:
    """One entry of `predictions`, JSON-ready (`ImagePrediction` or `ImageFailure`)."""
    named = {} if upload.file is None else {"file": upload.file}
    if isinstance(answer, Failure):
        return {"error": {"code": answer.code, "message": answer.message}, **named}
    return {
        "label": answer.label,
        "probability": answer.probability,
        "probabilities": dict(zip(classes, answer.probabilities, strict=True)),
        "confident": answer.confident,
        **named,
    }


def model_entry(info: BundleInfo) -> dict[str, Any]:
    """`ModelAnswer`, JSON-ready: a score that is not a number (no row of a class, say) becomes null."""
    described: dict[str, Any] = finite_or_null(
        {
            "id": info.id,
            "classes": info.classes,
            "engine": info.engine,
            "architecture": info.architecture,
            "preprocessing": info.preprocess.as_dict(),
            "scores": info.metrics,
            "temperature": info.temperature,
            "thresholds": info.thresholds,
            "fingerprints": info.fingerprints,
            "created": info.created,
        }
    )
    return described


def finite_or_null(value: Any) -> Any:
    """JSON has no NaN: replace what is not finite by None, all the way down."""
    if isinstance(value, dict):
        return {key: finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
