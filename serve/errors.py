"""Everything that goes wrong is answered in the one form of its path. No traceback leaves the server."""

import logging
import re
import uuid
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.protocols.errorforms import error_body
from serve.scopestate import noted

logger = logging.getLogger("eagleray.serve")


class ApiError(Exception):
    """A request that cannot be answered: status, a code for programs, a message for people (what and what to do)."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> JSONResponse:
    """An error in the form of its path; without a path in our own."""
    return JSONResponse(error_body(path, code, message), status, headers)


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_middleware(_LastResort)


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error.status, error.code, error.message, error.headers, path=request.scope["path"])


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path, status, headers = request.scope["path"], error.status_code, error.headers
    if status == 404:
        return error_response(
            404, "not_found", f"nothing at {path}: see /docs for what this endpoint answers", path=path
        )
    if status == 405:
        message = f"{request.method} is not allowed on {path}: use {(headers or {}).get('Allow', 'another method')}"
        return error_response(405, "method_not_allowed", message, headers, path=path)
    return error_response(status, "http_error", str(error.detail), headers, path=path)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    message = f"{problems}: see /docs for the form of a request"
    return error_response(422, "invalid_request", message, path=request.scope["path"])


class _LastResort:
    """Turns an exception that nobody expected into a 500 with the request's id, and logs it under that id.

    Starlette's own handler would answer too, but it raises again afterwards, and Ray would then log it a second time
    and count the replica's task as failed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception:
            request_id = _request_id(scope)
            logger.exception("request %s failed", request_id)
            if not started:
                message = f"the server failed on this request: report it with the request id {request_id}"
                await error_response(500, "internal", message, path=scope["path"])(scope, receive, send)


def _request_id(scope: Scope) -> str:
    """The id that `serve.watching.observe` gave the request, or without that layer the client's own or a new one. A
    client may have chosen it, hence the cleaning before it is logged."""
    if known := noted(scope, "request_id"):
        return known
    given = Headers(scope=scope).get("x-request-id", "")
    return re.sub(r"[^A-Za-z0-9._-]", "_", given)[:64] or uuid.uuid4().hex
