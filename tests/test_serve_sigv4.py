"""AWS's signatures, made by botocore itself: the right ones get in, and nothing else does."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message

from serve.door.access import Guarded
from serve.door.keystore import Keys, create_key
from serve.door.sigv4 import SKEW_S
from tests.asgicalls import Inner, call
from tests.doors import Config
from tests.signing import BODY, PATH, REPLAYS, SECRET, Request, door, keys, never, other, send, signed

__all__ = ["keys"]


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

    app = Guarded(application, keys, lambda: Config(max_body_bytes=len(body)))
    pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
    request = signed(body=body)

    async def receive() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        return {"type": "http.disconnect"}

    reply = asyncio.run(call(app, request.method, request.target, request.headers, receive=receive))
    assert reply.status == 204
    assert seen == [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]


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


def test_no_secret_is_told(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="eagleray"):
        replies = [send(door(keys), change(signed())) for change in [*REPLAYS.values(), *MALFORMED.values()]]
    shown = caplog.text + "".join(reply.body.decode() + str(reply.headers) for reply in replies)
    assert SECRET not in shown
    assert signed().header("authorization")[-64:] not in shown
