"""What the tests of AWS's signatures share: requests signed by botocore, ways to change them, and a door."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from starlette.types import Message

from serve.door.access import Guarded
from serve.door.keystore import VARIABLE, Keys
from tests.asgicalls import Headers, Inner, Reply, call
from tests.doors import Config

HOST = "endpoint.example:8000"
SECRET = "a-secret-of-ana-0123456789"
BODY = b"\x00\xffan image" * 10
PATH = "/endpoints/eagleray/invocations"


@dataclass(frozen=True)
class Request:
    """A request as it travels."""

    method: str
    target: str
    headers: Headers
    body: bytes = b""

    def with_header(self, name: str, value: str | None) -> "Request":
        kept = [pair for pair in self.headers if pair[0].lower() != name]
        return Request(self.method, self.target, kept if value is None else [*kept, (name, value)], self.body)

    def header(self, name: str) -> str:
        return next(str(value) for key, value in self.headers if str(key).lower() == name)


def signed(
    method: str = "POST",
    target: str = PATH,
    body: bytes = BODY,
    *,
    headers: dict[str, str] | None = None,
    key_id: str = "ana",
    secret: str = SECRET,
    token: str | None = None,
    region: str = "eu-central-1",
    service: str = "sagemaker",
) -> Request:
    """What botocore's own signer makes of a request."""
    request = AWSRequest(
        method, f"http://{HOST}{target}", headers={"Content-Type": "image/jpeg", **(headers or {})}, data=body
    )
    SigV4Auth(Credentials(key_id, secret, token), service, region).add_auth(request)
    return Request(method, target, [("Host", HOST), *request.headers.items()], body)


@pytest.fixture
def keys() -> Keys:
    return Keys({VARIABLE: f"ana={SECRET}"})


async def nobody_waits(_: float) -> None:
    return None


def door(
    keys: Keys, limits: Config | None = None, *, inner: Inner | None = None, late_s: float = 0, **more: Any
) -> Guarded:
    """`late_s`: how far its clock is ahead of the signer's."""
    return Guarded(
        inner or Inner(),
        keys,
        lambda: limits or Config(),
        wall_clock=lambda: time.time() + late_s,
        sleep=nobody_waits,
        **more,
    )


def send(app: Guarded, request: Request) -> Reply:
    return asyncio.run(call(app, request.method, request.target, request.headers, body=request.body))


def other(request: Request, **changes: Any) -> Request:
    return Request(**{**request.__dict__, **changes})


REPLAYS: dict[str, Callable[[Request], Request]] = {
    "another method": lambda r: other(r, method="PUT"),
    "another path": lambda r: other(r, target="/predict"),
    "a path in capitals": lambda r: other(r, target=r.target.upper()),
    "a path decoded once": lambda r: other(r, target=r.target.replace("%2F", "/")),
    "a longer path": lambda r: other(r, target=r.target + "/x"),
    "a query": lambda r: other(r, target=r.target + "?a=1"),
    "another body": lambda r: other(r, body=r.body + b"x"),
    "no body": lambda r: other(r, body=b""),
    "another host": lambda r: r.with_header("host", "other.example"),
    "no host": lambda r: r.with_header("host", None),
    "two hosts": lambda r: other(r, headers=[*r.headers, ("host", HOST)]),
    "another content type": lambda r: r.with_header("content-type", "application/json"),
    "no content type": lambda r: r.with_header("content-type", None),
    "another time": lambda r: r.with_header("x-amz-date", datetime.now(UTC).strftime("%Y%m%dT%H%M00Z")),
}


async def never() -> Message:
    raise AssertionError("the body was asked for")
