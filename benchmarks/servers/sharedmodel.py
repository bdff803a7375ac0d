"""What every compared server does with an image: our predictor, and the endpoint's JSON.

Servers from another environment reach our packages and what those need at the END of the path (EAGLERAY_PATH), so that
they keep their own versions of all that they bring.
"""

import hashlib
import hmac
import os
import sys
from typing import Any

sys.path.extend(path for path in os.environ.get("EAGLERAY_PATH", "").split(os.pathsep) if path)

from models.predictor import Predictor


def load() -> Predictor:
    """One thread, like one replica of ours."""
    return Predictor.load(os.environ["EAGLERAY_BUNDLE"], threads=1)


def port() -> int:
    return int(os.environ["EAGLERAY_PORT"])


def answer(predictor: Predictor, answers: list[Any]) -> dict[str, Any]:
    """The JSON of /predict."""
    return {"model": predictor.info.id, "predictions": [_entry(predictor.info.classes, one) for one in answers]}


def _entry(classes: tuple[str, ...], one: Any) -> dict[str, Any]:
    if hasattr(one, "code"):
        return {"error": {"code": one.code, "message": one.message}}
    return {
        "label": one.label,
        "probability": one.probability,
        "probabilities": dict(zip(classes, one.probabilities, strict=True)),
        "confident": one.confident,
    }


def key_hash() -> bytes:
    return hashlib.sha256(os.environ["EAGLERAY_KEY"].encode()).digest()


def is_key(given: str, expected: bytes) -> bool:
    """The same check as the endpoint's: the hash of the key, compared in constant time."""
    kind, _, key = given.partition(" ")
    return kind == "Bearer" and hmac.compare_digest(hashlib.sha256(key.encode()).digest(), expected)
