"""From the images of one request to the model's answers; what the outer layers want to know of it is noted."""

import uuid
from collections.abc import Sequence

from starlette.requests import Request

from serve.endpoint import Answered, Endpoint, Image
from serve.scopestate import note, noted


async def ask(endpoint: Endpoint, request: Request, images: Sequence[Image]) -> Answered:
    """All images' answers, in order, by one model. ApiError 503 when no model is ready or too many images wait."""
    scope = request.scope
    note(scope, "images", str(len(images)))
    # Without `serve.watching.observe`, as in a test, a request has no id; the model needs one to choose by.
    answered = await endpoint.predict(images, noted(scope, "request_id") or uuid.uuid4().hex)
    note(scope, "model", answered.info.id)
    return answered
