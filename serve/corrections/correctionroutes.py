"""POST /corrections: a person with a key says what an image really shows."""

import unicodedata
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from data.groups import parse_video_name
from serve.answers import ErrorAnswer
from serve.body import read_form
from serve.corrections.keeping import Correction, Corrections
from serve.endpoint import Endpoint
from serve.errors import ApiError
from serve.labelling import spreadsheet_safe
from serve.scopestate import noted
from serve.settings import EndpointConfig

MOST_CHARACTERS: Final = 100
"""Of a label and of the other texts."""
# Controls, line ends, halves of characters, and what turns the direction of the text around it.
_UNPRINTABLE: Final = ("Cc", "Cs", "Co", "Zl", "Zp")
_TURNING: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
# Unicode counts these as letters, marks or symbols, and nobody sees them: fillers, the blank of Braille, the joiner of
# graphemes, variation selectors.
_BLANK: Final = frozenset(
    "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5\u180b\u180c\u180d\u180f"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
_JOINERS: Final = "\u200c\u200d"

_ABOUT = """Send one image as `multipart/form-data` with a field `label`: what it really shows.

The operator must have named a folder for corrections; otherwise the answer is 404 with the code `corrections_off`
(`GET /limits` says so beforehand). The image is kept with the label as a row of a table that the next search reads. The
same image is kept once: with another label, the later label counts. A label may be one that the model does not know. It
may not begin with `=`, `+`, `-` or `@`, since a spreadsheet would take it for a formula.
"""
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "label"],
                "properties": {
                    "image": {"type": "string", "format": "binary", "description": "One encoded image, as it is."},
                    "label": {"type": "string", "maxLength": MOST_CHARACTERS, "description": "What it shows."},
                    "group": {
                        "type": "string",
                        "maxLength": MOST_CHARACTERS,
                        "description": "What it belongs to (site, dive, camera), so that a search does not tear it "
                        "apart. Without it, the video that a NOAA file name tells.",
                    },
                    "predicted": {
                        "type": "string",
                        "maxLength": MOST_CHARACTERS,
                        "description": "What the model said.",
                    },
                    "probability": {"type": "string", "description": "How probable the model found that, 0 to 1."},
                    "model": {"type": "string", "maxLength": MOST_CHARACTERS, "description": "The model's id."},
                },
            }
        }
    },
}
_ERRORS = {
    400: "The body is empty, or not the multipart body that it claims to be.",
    404: "This endpoint keeps no corrections.",
    408: "The body did not arrive in time.",
    413: "The body is larger, or holds more images, than this endpoint takes.",
    415: "The body is compressed.",
    422: "No image, no label, or a label that cannot be kept.",
    500: "An error of the server, with a request id to report.",
    503: "No model is ready yet, or the place for corrections cannot be written now.",
    507: "As many corrections are kept as the operator allows.",
}


class CorrectionAnswer(BaseModel):
    """The correction is kept."""

    image: str = Field(description="Where the image lies below the operator's folder.")
    label: str = Field(description="The label that counts from now on.")
    before: str | None = Field(description="The label that this image had there before; null for a new image.")


def router(endpoint: Endpoint) -> APIRouter:
    """The route, for whatever folder the endpoint's configuration names at the time of the request."""
    routes = APIRouter()
    keeper = _Keeper()

    @routes.post(
        "/corrections",
        summary="Say what an image really shows",
        description=_ABOUT,
        response_model=None,
        responses={
            200: {"model": CorrectionAnswer},
            **{status: {"model": ErrorAnswer, "description": text} for status, text in _ERRORS.items()},
        },
        openapi_extra={"requestBody": _BODY},
    )
    async def correct(request: Request) -> JSONResponse:
        config = endpoint.ready().config
        corrections = keeper.corrections(config)
        if corrections is None:
            message = "this endpoint keeps no corrections: whoever runs it can name a folder for them (--corrections)"
            raise ApiError(404, "corrections_off", message)
        saved = await corrections.add(await _read(request, config))
        return JSONResponse({"image": saved.path, "label": saved.label, "before": saved.before})

    return routes


class _Keeper:
    """The corrections of the configuration in service. It may name another folder while the endpoint runs."""

    def __init__(self) -> None:
        self._named: tuple[str, int, float] | None = None
        self._kept: Corrections | None = None

    def corrections(self, config: EndpointConfig) -> Corrections | None:
        named = (config.corrections, config.max_corrections, config.max_corrections_mb)
        if named != self._named:
            if self._kept:
                self._kept.close()
            most = int(config.max_corrections_mb * 2**20)
            self._kept = Corrections(named[0], max_rows=named[1], max_bytes=most) if named[0] else None
            self._named = named
        return self._kept


async def _read(request: Request, config: EndpointConfig) -> Correction:
    form = await read_form(request, config)
    if len(form.uploads) != 1 or form.uploads[0].file is None:
        raise ApiError(422, "not_one_image", "send multipart/form-data with one image and a field label")
    upload, fields = form.uploads[0], form.fields
    original = _printable(upload.file or "").strip()
    video = parse_video_name(original.replace("\\", "/"))
    return Correction(
        blob=upload.blob,
        label=_name("label", fields.get("label", ""), needed=True),
        group=_name("group", fields.get("group", "")) or (video.video if video else ""),
        predicted=_text("predicted", fields.get("predicted", "")),
        probability=_probability(fields.get("probability", "")),
        model=_text("model", fields.get("model", "")),
        corrected_by=noted(request.scope, "key"),
        request=noted(request.scope, "request_id"),
        original=original[:255],
    )


def _name(field: str, text: str, *, needed: bool = False) -> str:
    """A label or group, which must come back from the table as it is: so no apostrophe can make a formula harmless."""
    text = unicodedata.normalize("NFC", _text(field, text))
    if (unseen := _unseen(text)) or (text and not any(unicodedata.category(c)[0] in "LNPS" for c in text)):
        which = f"holds U+{ord(unseen):04X}, which cannot be seen" if unseen else "holds nothing that can be seen"
        raise ApiError(422, f"bad_{field}", f"the field {field} {which}: write it in plain text")
    if needed and not text:
        raise ApiError(422, f"bad_{field}", f"the field {field} is missing or empty: say what the image shows")
    if spreadsheet_safe(text) != text:
        message = (
            f"a {field} may not begin with {text[0]} (a spreadsheet would take it for a formula): write it otherwise"
        )
        raise ApiError(422, f"bad_{field}", message)
    return text


def _unseen(text: str) -> str:
    """The first character that nobody can see, or an empty text: with it two labels may look like one."""
    for place, c in enumerate(text):
        if c in _JOINERS and 0 < place < len(text) - 1 and _joins(text[place - 1]) and _joins(text[place + 1]):
            continue
        if c in _BLANK or unicodedata.category(c) == "Cf":
            return c
    return ""


def _joins(c: str) -> bool:
    """Whether it is a letter (or its mark) of a script that writes with joiners, as Persian and those of India do."""
    scripts = "\u0600" <= c < "\u1e00" or "\ua800" <= c < "\uac00" or "\U00010a00" <= c < "\U00012000"
    return scripts and unicodedata.category(c)[0] in "LM"


def _text(field: str, text: str) -> str:
    text = text.strip()
    if len(text) > MOST_CHARACTERS:
        message = f"the field {field} has {len(text):,} characters: shorten it to {MOST_CHARACTERS}"
        raise ApiError(422, f"bad_{field}", message)
    if text != _printable(text):
        message = f"the field {field} holds line ends or characters that cannot be seen: write it in plain text"
        raise ApiError(422, f"bad_{field}", message)
    return text


def _printable(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c) not in _UNPRINTABLE and c not in _TURNING)


def _probability(text: str) -> str:
    try:
        value = float(text) if text.strip() else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value <= 1:
        raise ApiError(422, "bad_probability", "the field probability must be a number from 0 to 1, or be left out")
    return "" if value is None else f"{value:.6f}"
