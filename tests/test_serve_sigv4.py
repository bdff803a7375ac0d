"""AWS's signatures, made by botocore and boto3 themselves: the right ones get in, and nothing else does."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import uvicorn
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config as BotoConfig
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from starlette.types import Message

from serve.door.access import Guarded
from serve.door.keystore import VARIABLE, Keys, create_key
from serve.door.sigv4 import SKEW_S
from tests.asgicalls import Headers, Inner, Reply, call

HOST = "endpoint.example:8000"
SECRET = "a-secret-of-ana-0123456789"
BODY = b"\x00\xffan image" * 10
PATH = "/endpoints/eagleray/invocations"


@dataclass
class Limits:
    auth: str = "keys"
    rate_limit: float = 0.0
    max_body_bytes: int = 1000
    body_timeout_s: float = 30.0


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
    keys: Keys, limits: Limits | None = None, *, inner: Inner | None = None, late_s: float = 0, **more: Any
) -> Guarded:
    """`late_s`: how far its clock is ahead of the signer's."""
    return Guarded(
        inner or Inner(),
        keys,
        lambda: limits or Limits(),
        wall_clock=lambda: time.time() + late_s,
        sleep=nobody_waits,
        **more,
    )


def send(app: Guarded, request: Request) -> Reply:
    return asyncio.run(call(app, request.method, request.target, request.headers, body=request.body))


@pytest.mark.parametrize(
    "target",
    [
        PATH,
        "/",
        "/predict?",
        "/predict?b=2&a=1&a=0&c&=d&e==",
        "/predict?a=1&A=2&a-b=3&a%20b=%2F%3D&%C3%A4=%C3%B6&a=&ab",
        "/v1/models/eagle%20ray:predict",
        "/a%2Fb/%2e%2e/c%252Fd",
        "/%C3%A4~b/(c)*'!$@,;=:+",
        "//two//slashes///and/./dots/../here/",
        "/..",
        "/x/",
    ],
)
def test_what_botocore_signs_gets_in(keys: Keys, target: str) -> None:
    inner = Inner()
    reply = send(door(keys, inner=inner), signed(target=target))
    assert (reply.status, json.loads(reply.body)) == (200, {"caller": "ana"})
    assert inner.bodies == [BODY]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "local"])
def test_any_method_and_region(keys: Keys, method: str, region: str) -> None:
    assert send(door(keys), signed(method, "/model", b"", region=region)).status == 200


def test_headers_are_trimmed_and_a_token_is_signed_and_of_no_meaning(keys: Keys) -> None:
    odd = {"X-Amzn-Sagemaker-Custom-Attributes": "  a   b\tc  ", "X-Empty": "", "Accept": "application/json;  verbose"}
    assert send(door(keys), signed(headers=odd, token="a-session-token")).status == 200
    empty = signed(headers={"X-Empty": ""})
    assert send(door(keys), empty).status == 200
    assert send(door(keys), empty.with_header("x-empty", None)).status == 403  # an empty header is not a missing one
    request = signed(headers={"X-Two": "one"})
    twice = Request(request.method, request.target, [*request.headers, ("x-two", "two")], request.body)
    assert send(door(keys), twice).status == 403


def test_a_proxy_may_add_headers(keys: Keys) -> None:
    request = signed().with_header("x-forwarded-for", "10.0.0.1").with_header("x-request-id", "abc")
    assert send(door(keys), request).status == 200


def test_a_body_is_given_to_the_application_as_it_came(keys: Keys) -> None:
    """Also a large one, which is hashed in another thread; and after the body comes what the server says next."""
    body = bytes(range(256)) * 4096
    seen: list[Message] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    app = Guarded(application, keys, lambda: Limits(max_body_bytes=len(body)))
    pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
    request = signed(body=body)

    async def receive() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        return {"type": "http.disconnect"}

    reply = asyncio.run(call(app, request.method, request.target, request.headers, receive=receive))
    assert reply.status == 204
    assert seen == [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]


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


@pytest.mark.parametrize("change", REPLAYS)
def test_a_changed_request_is_refused(keys: Keys, change: str) -> None:
    request = signed(target="/endpoints/eagle%2Fray/invocations")
    assert send(door(keys), request).status == 200
    inner = Inner()
    reply = send(door(keys, inner=inner), REPLAYS[change](request))
    assert (reply.status, reply.code) in {(403, "wrong_key"), (403, "bad_signature")}
    assert reply.headers["x-amzn-errortype"] == "InvalidSignatureException"
    assert inner.scopes == []


@pytest.mark.parametrize(
    "wrong",
    [{"secret": SECRET + "x"}, {"secret": ""}, {"key_id": "bob"}, {"key_id": "Ana"}],
)
def test_a_wrong_secret_is_refused_in_the_same_words_as_an_unknown_name(keys: Keys, wrong: dict[str, str]) -> None:
    reply = send(door(keys), signed(**wrong))  # type: ignore[arg-type]
    assert (reply.status, reply.code) == (403, "wrong_key")
    assert reply.body == send(door(keys), signed(secret="another")).body


def edited(old: str, new: str) -> Callable[[Request], Request]:
    return lambda r: r.with_header("authorization", r.header("authorization").replace(old, new))


MALFORMED: dict[str, Callable[[Request], Request]] = {
    "nothing": lambda r: r.with_header("authorization", "AWS4-HMAC-SHA256"),
    "no signature": lambda r: r.with_header("authorization", r.header("authorization").partition(", Sig")[0]),
    "more after it": lambda r: r.with_header("authorization", r.header("authorization") + ", Signature=0"),
    "too long": edited(", SignedHeaders", "," + " " * 5000 + "SignedHeaders"),
    "not text": lambda r: r.with_header("authorization", r.header("authorization") + "\xff"),
    "another service": edited("/sagemaker/", "/s3/"),
    "another ending": edited("aws4_request", "aws5_request"),
    "a region with a slash": edited("eu-central-1", "eu/central"),
    "a name with a slash": edited("=ana/", "=ana/x/"),
    "host not signed": edited(";host;", ";"),
    "date not signed": edited(";x-amz-date", ""),
    "headers unsorted": edited("content-type;host", "host;content-type"),
    "a header twice": edited("host;", "host;host;"),
    "no headers": edited("SignedHeaders=content-type;host;x-amz-date", "SignedHeaders="),
    "no date": lambda r: r.with_header("x-amz-date", None),
    "two dates": lambda r: other(r, headers=[*r.headers, ("x-amz-date", r.header("x-amz-date"))]),
    "an odd date": lambda r: r.with_header("x-amz-date", r.header("x-amz-date")[:8] + "T996199Z"),
    "a date in words": lambda r: r.with_header("x-amz-date", "Sat, 01 Jan 2028 00:00:00 GMT"),
    "a day of its own": edited("/20", "/19"),
    "an unsigned payload": lambda r: r.with_header("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
    "a streamed payload": lambda r: r.with_header("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
}


@pytest.mark.parametrize("change", MALFORMED)
def test_a_malformed_signature_is_refused_before_the_body_is_read(keys: Keys, change: str) -> None:
    request = MALFORMED[change](signed())
    reply = asyncio.run(call(door(keys), "POST", request.target, request.headers, receive=never))
    assert (reply.status, reply.code) == (403, "bad_signature")


async def never() -> Message:
    raise AssertionError("the body was asked for")


def test_an_unsigned_payload_is_refused_also_where_it_is_signed_so(keys: Keys) -> None:
    reply = send(door(keys), signed(headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}))
    assert (reply.status, reply.code) == (403, "bad_signature")


def test_a_hash_that_is_sent_along_must_be_the_bodys(keys: Keys) -> None:
    right, wrong = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(b"").hexdigest()
    assert send(door(keys), signed(headers={"X-Amz-Content-SHA256": right})).status == 200
    # Signed so by one who knows the secret: botocore takes the header's word for the body.
    assert send(door(keys), signed(headers={"X-Amz-Content-SHA256": wrong})).status == 403
    assert send(door(keys), signed().with_header("x-amz-content-sha256", right)).status == 200
    assert send(door(keys), signed().with_header("x-amz-content-sha256", wrong)).status == 403


@pytest.mark.parametrize("late_s", [SKEW_S + 5, -SKEW_S - 5, 86400, -86400 * 365])
def test_a_request_from_another_time_is_refused_before_its_body_is_read(keys: Keys, late_s: float) -> None:
    request = signed()
    reply = asyncio.run(call(door(keys, late_s=late_s), "POST", request.target, request.headers, receive=never))
    assert (reply.status, reply.code) == (403, "bad_signature")
    assert "set your clock" in reply.body.decode()


@pytest.mark.parametrize("late_s", [SKEW_S - 5, -SKEW_S + 5])
def test_clocks_may_differ_a_little(keys: Keys, late_s: float) -> None:
    assert send(door(keys, late_s=late_s), signed()).status == 200


def test_a_stranger_cannot_have_a_body_read(keys: Keys) -> None:
    request = signed(key_id="stranger")
    reply = asyncio.run(call(door(keys), "POST", request.target, request.headers, receive=never))
    assert (reply.status, reply.code) == (403, "wrong_key")


def test_only_keys_made_for_aws_sign(tmp_path: Any) -> None:
    path = str(tmp_path / "keys.json")
    plain, aws = create_key(path, "plain"), create_key(path, "aws", aws=True)
    assert aws.aws_secret is not None
    keys = Keys.open(path, {})
    assert send(door(keys), signed(key_id="aws", secret=aws.aws_secret)).status == 200
    assert send(door(keys), signed(key_id="aws", secret=aws.key)).status == 403
    assert send(door(keys), signed(key_id="plain", secret=plain.key)).status == 403
    stored = json.loads((tmp_path / "keys.json").read_text())["keys"][0]["sha256"]
    assert send(door(keys), signed(key_id="plain", secret=stored)).status == 403  # who reads the file signs nothing


def test_the_limits_of_a_body_hold_at_the_door(keys: Keys) -> None:
    app = door(keys, Limits(max_body_bytes=100, body_timeout_s=0.05))
    assert send(app, signed(body=b"x" * 100)).status == 200
    reply = send(app, signed(body=b"x" * 101))
    assert (reply.status, reply.code, reply.headers["connection"]) == (413, "body_too_large", "close")
    announced = signed().with_header("content-length", "101")
    reply = asyncio.run(call(app, "POST", PATH, announced.headers, receive=never))
    assert (reply.status, reply.code) == (413, "body_too_large")

    async def slow() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    reply = asyncio.run(call(app, "POST", PATH, signed().headers, receive=slow))
    assert (reply.status, reply.code) == (408, "body_timeout")

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    assert asyncio.run(call(app, "POST", PATH, signed().headers, receive=gone)).status == 0


def test_slow_bodies_of_who_knows_a_name_are_bounded_and_harm_no_bearer_key(keys: Keys) -> None:
    async def scenario() -> None:
        app = door(keys, unproven=3)
        stalled = asyncio.Event()

        async def stalling() -> Message:
            await stalled.wait()
            return {"type": "http.disconnect"}

        bad = signed(secret="guessed")
        calls = [asyncio.ensure_future(call(app, "POST", PATH, bad.headers, receive=stalling)) for _ in range(50)]
        while sum(one.done() for one in calls) < 47:
            await asyncio.sleep(0)
        refused = [one.result() for one in calls if one.done()]
        assert {(reply.status, reply.code) for reply in refused} == {(429, "too_many_uploads")}
        assert {reply.headers["x-amzn-errortype"] for reply in refused} == {"ThrottlingException"}
        bearer = [("authorization", f"Bearer {SECRET}")]
        assert (await call(app, "POST", "/predict", bearer)).status == 200
        stalled.set()
        await asyncio.gather(*calls)
        good = signed()
        assert (await call(app, "POST", PATH, good.headers, body=good.body)).status == 200

    asyncio.run(scenario())


def test_wrong_signatures_are_slowed_like_wrong_keys_and_drain_nobodys_rate(keys: Keys) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    app = Guarded(Inner(), keys, lambda: Limits(rate_limit=0.5), clock=lambda: 5.0, sleep=sleep)
    for number in range(15):
        assert send(app, signed(secret="guessed") if number % 2 else signed(key_id="bob")).status == 403
    assert waits == [1.0] * 5
    assert send(app, signed()).status == 200
    limited = send(app, signed())
    assert (limited.status, limited.code, limited.headers["retry-after"]) == (429, "rate_limited", "2")
    assert limited.headers["x-amzn-errortype"] == "ThrottlingException"


def test_no_secret_is_told(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="eagleray"):
        replies = [send(door(keys), change(signed())) for change in [*REPLAYS.values(), *MALFORMED.values()]]
    shown = caplog.text + "".join(reply.body.decode() + str(reply.headers) for reply in replies)
    assert SECRET not in shown
    assert signed().header("authorization")[-64:] not in shown


# boto3's own client.


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def make(endpoint: str, secret: str = SECRET) -> Any:
        return boto3.client(
            "sagemaker-runtime",
            endpoint_url=endpoint,
            region_name="ap-southeast-2",
            aws_access_key_id="ana",
            aws_secret_access_key=secret,
            config=BotoConfig(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=10),
        )

    return make


@pytest.mark.parametrize("name", ["eagleray", "my-model-2"])
def test_a_request_that_boto3_prepared(keys: Keys, runtime: Callable[..., Any], name: str) -> None:
    class CapturedError(Exception):
        pass

    caught: list[Any] = []

    def catch(request: Any, **_: Any) -> None:
        caught.append(request)
        raise CapturedError

    client = runtime(f"http://{HOST}")
    client.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", catch)
    with contextlib.suppress(CapturedError):
        client.invoke_endpoint(
            EndpointName=name,
            ContentType="application/x-image",
            Body=BODY,
            CustomAttributes="a b",
            Accept="application/json",
        )
    [prepared] = caught
    headers = [(key, value if isinstance(value, str) else value.decode()) for key, value in prepared.headers.items()]
    request = Request(prepared.method, urlsplit(prepared.url).path, [("Host", HOST), *headers], prepared.body)
    assert request.target == f"/endpoints/{name}/invocations"
    assert send(door(keys), request).status == 200
    for change in REPLAYS.values():
        if change is not REPLAYS["a path decoded once"]:  # there is nothing to decode in this one
            assert send(door(keys), change(request)).status == 403


@pytest.fixture
def address(keys: Keys) -> Iterator[str]:
    """The door before a small application, on a socket, behind the server that Ray uses."""
    app = door(keys, Limits(max_body_bytes=2**20))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listening.close()


def test_boto3_over_a_socket(address: str, runtime: Callable[..., Any]) -> None:
    def invoke(client: Any, body: bytes) -> Any:
        return client.invoke_endpoint(EndpointName="eagleray", ContentType="image/jpeg", Body=body)

    answer = invoke(runtime(address), b"\xff\xd8" * 200_000)  # more than travels in one piece
    assert json.loads(answer["Body"].read()) == {"caller": "ana"}
    with pytest.raises(ClientError) as refused:
        invoke(runtime(address, "a-wrong-secret"), BODY)
    assert refused.value.response["Error"]["Code"] == "InvalidSignatureException"
    assert "look at the access key id" in refused.value.response["Error"]["Message"]
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
