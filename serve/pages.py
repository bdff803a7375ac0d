"""The page for people at `/`, its documentation at `/docs`, and what they load. They hold no data and need no key."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from serve.answers import ErrorAnswer
from serve.endpoint import Endpoint

_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, no script but our files, no text that becomes markup, in nobody's frame.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS: Final[Mapping[str, str]] = {
    # Asked again each time, and then mostly answered 304: a new version of the page is not mixed with an old script.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LimitsAnswer(BaseModel):
    """How much one request may hold, and whether corrections are kept."""

    max_body_bytes: int = Field(description="Largest body of a request.")
    max_files: int = Field(description="Most images in one multipart body.")
    body_timeout_s: float = Field(description="Seconds that a body may take to arrive.")
    corrections: bool = Field(description="Whether `POST /corrections` keeps what it is told.")


@dataclass(frozen=True)
class _File:
    content: bytes
    headers: Mapping[str, str]


def router(endpoint: Endpoint) -> APIRouter:
    """`/`, `/docs`, `/page/{name}` for exactly the files that are there now, and `/limits`."""
    routes = APIRouter()
    files = _read(Path(__file__).parent / "page")

    def answer(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise HTTPException(404)
        if file.headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=file.headers)
        return Response(file.content, headers=file.headers)

    @routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return answer(request, "index.html")

    @routes.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs(request: Request) -> Response:
        return answer(request, "docs.html")

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        return answer(request, name)

    @routes.get(
        "/limits",
        summary="How much may a request hold?",
        description="What a client should know before it sends a folder of images: the page at `/` asks this first.",
        response_model=None,
        responses={
            200: {"model": LimitsAnswer},
            503: {"model": ErrorAnswer, "description": "No model is ready yet."},
        },
    )
    async def limits() -> JSONResponse:
        config = endpoint.ready().config
        return JSONResponse(
            {
                "max_body_bytes": config.max_body_bytes,
                "max_files": config.max_files,
                "body_timeout_s": config.body_timeout_s,
                "corrections": bool(config.corrections),
            }
        )

    return routes


def _read(folder: Path) -> dict[str, _File]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _KINDS:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[path.name] = _File(content, {**_HEADERS, "Content-Type": _KINDS[path.suffix], "ETag": etag})
    return found
