"""The door: no request without a known key goes past here, except to the few paths that are open to all."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.door import sigv4
from serve.door.keystore import Keys
from serve.door.ratelimits import Buckets, Recent, Room, retry_after
from serve.door.wholebody import discard, read_whole, replayed
from serve.errors import ApiError
from serve.protocols.errorforms import error_body
from serve.scopestate import OPEN, note

logger = logging.getLogger("eagleray.serve")

_OPEN_PATHS: Final = frozenset(
    {"/", "/docs", "/openapi.json", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready"}
)
_PAGE_FILE: Final = re.compile(r"/page(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
"""The page's own files. A part that begins with a dot is none: `..` would lead elsewhere."""

_WRONG_ALLOWED: Final = 10
_WRONG_WITHIN_S: Final = 10.0
_PAUSE_S: Final = 1.0
_QUIET_S: Final = 60.0
_INLINE_BYTES: Final = 64 * 1024
"""Up to here a hash is sooner made than handed to another thread."""

_NO_KEY = (
    "this path asks for a key: send the header `Authorization: Bearer KEY` "
    "(whoever runs the endpoint makes one with serve/keys.py add NAME)"
)
_WRONG = "this key is not known here, or no longer: ask whoever runs the endpoint for one"
_WRONG_SIGNATURE = "no AWS key of this endpoint makes this signature: look at the access key id and the secret"
_MANY = "send one key, in one header: either Authorization or x-api-key"
_AWS_NAMES: Final = {
    "wrong_key": "InvalidSignatureException",
    "bad_signature": "InvalidSignatureException",
    "rate_limited": "ThrottlingException",
    "too_many_wrong_keys": "ThrottlingException",
    "too_many_uploads": "ThrottlingException",
}
"""What AWS's clients call our errors. They look at this name, not at the status, to decide whether to try again."""


class Limits(Protocol):
    """What is needed of `serve.settings.EndpointConfig`."""

    @property
    def auth(self) -> str: ...
    @property
    def rate_limit(self) -> float: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def body_timeout_s(self) -> float: ...


@dataclass(frozen=True)
class _Closed:
    """What holds as long as nobody has said anything."""

    auth: str = "keys"
    rate_limit: float = 0.0
    max_body_bytes: int = 32 * 2**20
    body_timeout_s: float = 30.0


class Guarded:
    """An ASGI application behind keys: bearer keys, `x-api-key`, and AWS's signatures; with a rate limit for each key.

    401 without a key, 403 with a wrong one, 429 with Retry-After above the rate. Who called is noted in the scope as
    "key". What cannot be told apart is refused: the open paths are an exact list, for GET and HEAD.

    Wrong keys are slowed after ten within ten seconds, so that a client with an old key in a loop costs little. This
    is no defence against guessing, and none is needed: a key has 256 random bits. A pause holds one of the requests
    that a replica works on at once, so `pauses` of them are allowed and the next wrong key is answered 429 at once;
    right keys never wait. For the same reason `unproven` bounds the signed requests whose body is being read: whoever
    knows the name of a key can have a body read, because only the body tells whether the signature holds.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        settings: Callable[[], Limits | None],
        *,
        pauses: int = 8,
        unproven: int = 16,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`settings` is asked at each request: it may change while the endpoint runs. None closes what can be closed.

        `pauses` and `unproven` should stay well below what a replica admits at once (32 by default).
        """
        self._app = app
        self._keys = keys
        self._settings = settings
        self._buckets = Buckets(clock)
        self._wrong = Recent(_WRONG_ALLOWED, _WRONG_WITHIN_S, clock)
        self._told = Recent(1, _QUIET_S, clock)
        self._pauses = Room(pauses)
        self._unproven = Room(unproven)
        self._wall_clock = wall_clock
        self._sleep = sleep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: a plain 403
            return
        if scope["type"] != "http":
            raise ValueError(f"unknown kind of connection: {scope['type']}")
        try:
            receive = await self._admitted(scope, receive)
        except ApiError as refused:
            headers = {**(refused.headers or {}), **_for_aws(scope, refused.code)}
            body = error_body(scope["path"], refused.code, refused.message)
            await JSONResponse(body, refused.status, headers)(scope, receive, send)
            return
        except ClientDisconnect:
            return  # nobody is left to answer
        await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """Note who calls. Returns from where the application may read the body; ApiError for who may not call."""
        if _is_open(scope):
            note(scope, "key", OPEN)
            return receive
        limits = self._settings() or _Closed()
        name = OPEN
        if limits.auth != "off":
            name, receive = await self._caller(scope, receive, limits)
        note(scope, "key", name)
        own = self._keys.rate_of(name)
        rate = limits.rate_limit if own is None else own
        if rate > 0 and (wait := self._buckets.take(name, rate)):
            message = f"more than {rate:g} requests a second: wait for the time in Retry-After, then send it again"
            raise ApiError(429, "rate_limited", message, retry_after(wait))
        return receive

    async def _caller(self, scope: Scope, receive: Receive, limits: Limits) -> tuple[str, Receive]:
        signed, value = _presented(scope)
        if signed:
            name, receive = await self._signer(value, scope, receive, limits)
        else:
            name = self._keys.named(value)
        if name is None:
            await self._slow(receive)
            raise ApiError(403, "wrong_key", _WRONG_SIGNATURE if signed else _WRONG)
        return name, receive

    async def _signer(
        self, authorization: bytes, scope: Scope, receive: Receive, limits: Limits
    ) -> tuple[str | None, Receive]:
        """Who signed the request, None if it was nobody known, and from where its body can be read once more."""
        headers = scope["headers"]
        try:
            signed = sigv4.parsed(authorization, headers, self._wall_clock())
        except sigv4.SignatureFaultError as fault:
            raise ApiError(403, "bad_signature", str(fault)) from None
        secret = self._keys.secret_of(signed.name)
        if secret is None:
            return None, receive
        with self._unproven.place() as free:
            if not free:
                message = "too many signed requests are being read: send this one again in a moment"
                raise ApiError(429, "too_many_uploads", message, retry_after(1))
            body = await read_whole(scope, receive, limits.max_body_bytes, limits.body_timeout_s)
            large = len(body) > _INLINE_BYTES
            sha256 = await asyncio.to_thread(_sha256, body) if large else _sha256(body)
        if not sigv4.body_claim_holds(headers, sha256) or not sigv4.holds(
            signed,
            secret,
            method=scope["method"],
            raw_path=scope.get("raw_path") or quote(scope["path"]).encode(),
            query=scope["query_string"],
            headers=headers,
            body_sha256=sha256,
        ):
            return None, receive
        return signed.name, replayed(body, receive)

    async def _slow(self, receive: Receive) -> None:
        """Let the sender of a wrong key wait, where there were many. ApiError 429 where too many wait already."""
        if not self._wrong.too_many():
            return
        if not self._told.too_many():
            logger.warning("more than %d wrong keys within %g s: they are slowed", _WRONG_ALLOWED, _WRONG_WITHIN_S)
        with self._pauses.place() as free:
            if not free:
                raise ApiError(429, "too_many_wrong_keys", f"too many wrong keys at once; {_WRONG}", retry_after(1))
            # What is sent meanwhile is thrown away: Ray's replica would gather it in memory without a limit.
            discarding = asyncio.create_task(discard(receive))
            try:
                await self._sleep(_PAUSE_S)
            finally:
                discarding.cancel()


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def is_open_path(path: str) -> bool:
    """Whether GET and HEAD of this path ask for no key."""
    return path in _OPEN_PATHS or _PAGE_FILE.fullmatch(path) is not None


def _is_open(scope: Scope) -> bool:
    """Whether the path asks for no key. It is the path that routing sees, decoded and below any mount point."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return is_open_path(path)


def _presented(scope: Scope) -> tuple[bool, bytes]:
    """Whether the request is signed in AWS's way, and the signature or else the key. ApiError without either."""
    found = [pair for pair in scope["headers"] if pair[0] == b"authorization" or pair[0] == b"x-api-key"]
    if len(found) > 1:
        raise ApiError(400, "many_keys", _MANY)
    for name, value in found:
        scheme, _, key = value.strip().partition(b" ") if name == b"authorization" else (b"bearer", b"", value)
        if scheme.upper() == sigv4.ALGORITHM:
            return True, key
        if scheme.lower() == b"bearer" and (key := key.strip()):
            return False, key
    raise ApiError(401, "no_key", _NO_KEY, {"WWW-Authenticate": "Bearer"})


def _for_aws(scope: Scope, code: str) -> dict[str, str]:
    signed = any(name == b"authorization" and value.startswith(sigv4.ALGORITHM) for name, value in scope["headers"])
    return {"x-amzn-errortype": _AWS_NAMES[code]} if signed and code in _AWS_NAMES else {}
