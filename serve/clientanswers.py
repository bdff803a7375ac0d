"""What the client hands out: answers, an image's problem, and the errors that stand for no answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

RetryKind: TypeAlias = Literal["connection", "status", "answer"]
"""No whole answer on the connection, a status that asks for another try, or an answer to another request."""


@dataclass(frozen=True)
class Answer:
    """What one image shows."""

    model: str
    """Id of the model that answered."""
    label: str
    probability: float
    """Of `label`, 0 to 1."""
    probabilities: Mapping[str, float]
    """Of each class; they sum to 1."""
    confident: bool | None
    """Whether the model was right for at least 95 % of such validation images; None if it promises nothing."""


@dataclass(frozen=True)
class Problem:
    """Why one image has no label. It is the image's fault: another try would end alike."""

    code: str
    message: str


@dataclass(frozen=True)
class Served:
    """The model in service."""

    id: str
    classes: tuple[str, ...]
    about: Mapping[str, Any]
    """All that GET /model says."""


@dataclass(frozen=True)
class Retry:
    """A try that failed and is made again."""

    request_id: str
    attempt: int
    """1 for the first try."""
    kind: RetryKind
    status: int
    reason: str


class ClientError(Exception):
    """No answer. `status` is 0 where no HTTP answer is behind it."""

    def __init__(self, code: str, message: str, *, status: int = 0, request_id: str = "") -> None:
        super().__init__(f"{message} (request {request_id})" if request_id else message)
        self.code, self.message, self.status, self.request_id = code, message, status, request_id


class RefusedError(ClientError):
    """The endpoint does not take this request (a wrong key, a body too large): code and message are its own."""


class UnavailableError(ClientError):
    """Every try failed until the time or the tries ran out: code and message are those of the last one."""


class AnswerError(ClientError):
    """What came back is not the answer of such an endpoint to this request."""


def read_prediction(answer: Any) -> Answer | Problem:
    """From the JSON of /predict for one image. ValueError where it is not of that form."""
    try:
        (entry,) = answer["predictions"]
        if "error" in entry:
            return Problem(str(entry["error"]["code"]), str(entry["error"]["message"]))
        probabilities = {str(name): float(value) for name, value in entry["probabilities"].items()}
        label, probability, confident = str(entry["label"]), float(entry["probability"]), entry["confident"]
        return Answer(str(answer["model"]), label, probability, probabilities, confident)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an answer of /predict: {error}") from None


def read_served(answer: Any) -> Served:
    """From the JSON of /model. ValueError where it is not of that form."""
    try:
        return Served(str(answer["id"]), tuple(map(str, answer["classes"])), answer)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an answer of /model: {error}") from None


def read_error(status: int, body: bytes) -> tuple[str, str]:
    """Code and message of the endpoint's own form, or what a proxy in front of it says in plain text."""
    try:
        detail = json.loads(body)["error"]
        return str(detail["code"]), str(detail["message"])
    except (ValueError, KeyError, TypeError):
        text = " ".join(body.decode("utf-8", errors="replace").split())[:200]
        return f"http_{status}", f"HTTP {status}: {text or 'no text'}"
