"""Encoded images inside JSON: base64, strictly."""

import binascii
from typing import Any

from serve.errors import ApiError
from serve.protocols.jsonbody import kind_of


def blob_of(text: Any, where: str) -> bytes:
    """The bytes of one image in standard base64 (RFC 4648, section 4: + and /, padded, no line breaks).

    The URL-safe alphabet is refused and not guessed at: whoever uses it has another protocol in mind. ApiError 422
    says which mistake it is. Whether the bytes are an image is the predictor's question.
    """
    if not isinstance(text, str):
        raise ApiError(422, "bad_base64", f"{where}: expected base64 in a text, got {kind_of(text)}")
    try:
        blob = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ApiError(422, "bad_base64", f"{where}: not standard base64: {_mistake(text, str(error))}") from None
    if len(text) % 4:  # Python 3.11 takes a fifth character after four that are complete
        raise ApiError(422, "bad_base64", f"{where}: not standard base64: {_mistake(text, 'Excess padding')}")
    return blob


def _mistake(text: str, error: str) -> str:
    if text.startswith("data:"):
        return "leave out the part up to the comma (data:image/...;base64,)"
    if "\n" in text or "\r" in text:
        return "it has line breaks; use Python's base64.b64encode, not encodebytes (or `base64 -w0`)"
    if "-" in text or "_" in text:
        return "it is in the URL-safe alphabet; use the one with + and /"
    return f"{error}; use Python's base64.b64encode"
