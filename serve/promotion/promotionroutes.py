"""GET /promotion: how the promotion under way goes, summed over the replicas."""

import logging
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from serve.answers import ErrorAnswer
from serve.endpoint import Endpoint
from serve.errors import ApiError
from serve.promotion.judge import Decision, Stage

logger = logging.getLogger("eagleray.serve")


class ReplicaState(BaseModel):
    """What one replica reported last."""

    status: Literal["loading", "ready", "failed", "dropped"] = Field(description="What it has of the new model.")
    old: str = Field(description="Id of its model in service.")
    new: str = Field(description="Id of the new model, empty until it is loaded.")
    problem: str = Field(description="Why the new model failed or was taken out; empty otherwise.")
    seen_s: float = Field(description="Seconds since it reported.")


class PromotionAnswer(BaseModel):
    """A promotion under way. Without one, `promotion` is null and nothing else is there."""

    promotion: str | None = Field(description="Its id.")
    stage: Stage | None = Field(default=None, description="shadow: the new model answers nobody; watch: everybody.")
    share: float | None = Field(default=None, description="Share of the requests that the new model answers, 0 to 1.")
    decision: Decision | None = Field(default=None, description="What is to be done in this stage.")
    reasons: list[str] | None = Field(default=None, description="Why, in words.")
    watched_s: float | None = Field(default=None, description="Seconds since the command that promotes last asked.")
    age_s: float | None = Field(default=None, description="Seconds since the replicas first reported of it.")
    counts: dict[str, int] | None = Field(default=None, description="What all replicas counted in this stage.")
    old_seconds: float | None = Field(default=None, description="Median seconds an image of the model in service.")
    new_seconds: float | None = Field(default=None, description="Median seconds an image of the new model.")
    ratio: float | None = Field(default=None, description="Median of their ratio, on the same images.")
    replicas: dict[str, ReplicaState] | None = Field(default=None, description="Each replica, by its id.")


def router(endpoint: Endpoint) -> APIRouter:
    routes = APIRouter()
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": PromotionAnswer},
        503: {"model": ErrorAnswer, "description": "The replicas' counts cannot be summed now; try again."},
    }

    @routes.get("/promotion", summary="How does the new model do?", response_model=None, responses=answers)
    async def promotion(watching: str = "") -> JSONResponse:
        try:
            state = await endpoint.candidates.state(watching=watching)
        except Exception as error:  # whatever Ray raises when its actor is gone
            logger.warning("the board of the promotion does not answer: %r", error)
            message = "the counts of the replicas cannot be summed now: try again in a few seconds"
            raise ApiError(503, "no_board", message, {"retry-after": "2"}) from None
        return JSONResponse({"promotion": None} if state is None else state)

    return routes
