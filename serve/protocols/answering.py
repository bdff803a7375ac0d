"""From the images of one request to its predictions, for protocols that have no place for an image that failed."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from data.images import Failure
from models.bundle import BundleInfo
from models.predictor import Prediction
from serve.asking import ask
from serve.endpoint import Endpoint, Image, Loaded
from serve.errors import ApiError

VERSION = "1"
"""The only version: a path may name it."""


@dataclass(frozen=True)
class Predicted:
    """One prediction for each image, in order, and the model that made them all."""

    info: BundleInfo
    predictions: list[Prediction]

    @property
    def probabilities(self) -> list[list[float]]:
        """A row for each image, a column for each class."""
        return [list(prediction.probabilities) for prediction in self.predictions]


def loaded_as(endpoint: Endpoint, name: str, version: str = VERSION) -> Loaded:
    """The model in service, if this is what it is called; ApiError 404 names the right name, 503 if none is ready."""
    loaded = endpoint.ready()
    if name != loaded.config.name:
        raise ApiError(
            404, "unknown_model", f"no model {name[:64]!r} here: this endpoint serves {loaded.config.name!r}"
        )
    if version != VERSION:
        message = f"no version {version[:64]!r} of {name!r} here: leave the version out, or ask for {VERSION}"
        raise ApiError(404, "unknown_version", message)
    return loaded


async def predicted(endpoint: Endpoint, request: Request, images: Sequence[Image]) -> Predicted:
    """All images' predictions; ApiError 422 with the number (from 0) and the failure of the first that has none."""
    answered = await ask(endpoint, request, images)
    failures = [(number, one) for number, one in enumerate(answered.answers) if isinstance(one, Failure)]
    if failures:
        number, failure = failures[0]
        others = f" ({len(failures)} of {len(images)} images failed)" if len(failures) > 1 else ""
        message = f"image {number} has no prediction: {failure.message}{others}"
        raise ApiError(422, failure.code, message)
    return Predicted(answered.info, [one for one in answered.answers if isinstance(one, Prediction)])
