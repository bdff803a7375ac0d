"""An error in the form that the protocol of its path publishes. A leaf: what answers errors may import it."""

from typing import Any


def error_body(path: str, code: str, message: str) -> dict[str, Any]:
    """JSON-ready: `{"error": {"code", "message"}}` where the path is our own.

    A client of TensorFlow Serving or of the Open Inference Protocol reads `error` as a text, boto3 reads `code` and
    `message`: with our own form they would show an empty message, or fail while they read it.
    """
    if path == "/v2" or path.startswith(("/v1/", "/v2/")):
        return {"error": message, "code": code}
    own: dict[str, Any] = {"error": {"code": code, "message": message}}
    if path in ("/invocations", "/ping") or path.startswith("/endpoints/"):
        return {**own, "code": code, "message": message}
    return own
