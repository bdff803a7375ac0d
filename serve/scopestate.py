"""What the layers of the endpoint tell each other about one request, in the ASGI scope's `state`: texts, and a time."""

import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal

Note = Literal["request_id", "key", "model", "images"]
"""request_id: set by `serve.watching.observe`. key: the name of the caller's key. model: the id of the model that
answered. images: how many images the request holds."""

OPEN: Final = "open"
"""The name of nobody's key: a path that asks for none, or an endpoint without keys."""


def note_arrival(scope: MutableMapping[str, Any]) -> None:
    """The request is here, but may still have to wait for its turn."""
    scope.setdefault("state", {})["arrival"] = time.perf_counter()


def arrival(scope: Mapping[str, Any]) -> float:
    """When that was, by `time.perf_counter`; now, where nobody noted it."""
    return float(scope.get("state", {}).get("arrival") or time.perf_counter())


def note(scope: MutableMapping[str, Any], name: Note, value: str) -> None:
    scope.setdefault("state", {})[name] = value


def noted(scope: Mapping[str, Any], name: Note) -> str:
    """What was noted, or an empty text."""
    return str(scope.get("state", {}).get(name, ""))
