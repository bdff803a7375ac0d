"""The door before every route: who gets in by which key, and what the others are told."""

import asyncio
import json
import logging
import threading
from pathlib import Path

import pytest
from starlette.types import Message

from serve.door.access import Guarded
from serve.door.keystore import Keys, create_key
from serve.protocols.errorforms import error_body
from serve.scopestate import OPEN
from tests.asgicalls import Headers, Inner, call, scope_of
from tests.clocks import Clock
from tests.doors import ANA, BOB, RIGHT, WRONG, Config, ask, guarded, keys

__all__ = ["keys"]


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", f"Bearer {ANA}")],
        [("authorization", f"bearer {ANA}")],
        [("authorization", f"BEARER   {ANA}  ")],
        [("x-api-key", ANA)],
        [("x-api-key", f" {ANA} ")],
        [("accept", "*/*"), ("X-API-Key", ANA)],
    ],
)
def test_a_right_key_gets_in_by_either_header(keys: Keys, headers: Headers) -> None:
    inner = Inner()
    reply = ask(guarded(keys, inner=inner), "POST", "/predict", headers, body=b"image")
    assert (reply.status, json.loads(reply.body)) == (200, {"caller": "ana"})
    assert inner.bodies == [b"image"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", f"Basic {ANA}")],
        [("authorization", ANA)],
        [("authorization", f"Bearer{ANA}")],
        [("authorization", f"Bearer\t{ANA}")],
        [("authorization", b"\xff\xfe")],
        [("x-api-key", "  ")],
        [("cookie", f"authorization=Bearer {ANA}")],
        [("x-authorization", f"Bearer {ANA}")],
    ],
)
def test_without_a_key_it_is_401(keys: Keys, headers: Headers) -> None:
    inner = Inner()
    reply = ask(guarded(keys, inner=inner), "POST", f"/predict?key={ANA}&x-api-key={ANA}", headers)
    assert (reply.status, reply.code) == (401, "no_key")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert inner.scopes == []


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer er_wrong")],
        [("authorization", f"Bearer {ANA[:-1]}")],
        [("authorization", f"Bearer {ANA}x")],
        [("authorization", f"Bearer {ANA.upper()}")],
        [("authorization", f"Bearer {ANA} {BOB}")],
        [("authorization", f"Bearer {ANA},")],
        [("authorization", f"Bearer Bearer {ANA}")],
        [("authorization", f"Bearer {'x' * 60_000}")],
        [("authorization", b"Bearer \xc3\xa9\xff\x00")],
        [("x-api-key", f"Bearer {ANA}")],
        [("x-api-key", b"\xff" * 300)],
    ],
)
def test_a_wrong_key_is_403(keys: Keys, headers: Headers) -> None:
    inner = Inner()
    reply = ask(guarded(keys, inner=inner), "POST", "/predict", headers)
    assert (reply.status, reply.code) == (403, "wrong_key")
    assert "www-authenticate" not in reply.headers
    assert inner.scopes == []


@pytest.mark.parametrize(
    "headers",
    [
        [*RIGHT, *RIGHT],
        [*RIGHT, ("authorization", "Bearer er_wrong")],
        [*RIGHT, ("x-api-key", ANA)],
        [("x-api-key", ANA), ("x-api-key", "")],
    ],
)
def test_several_keys_are_refused(keys: Keys, headers: Headers) -> None:
    reply = ask(guarded(keys), "POST", "/predict", headers)
    assert (reply.status, reply.code) == (400, "many_keys")


def test_without_settings_all_is_closed_and_off_is_off(keys: Keys) -> None:
    closed = Guarded(Inner(), keys, lambda: None)
    assert ask(closed, "POST", "/predict").status == 401
    assert ask(closed, "GET", "/healthz").status == 200
    assert ask(closed, "POST", "/predict", RIGHT).status == 200
    config = Config(auth="off")
    app = guarded(keys, config)
    assert json.loads(ask(app, "POST", "/predict").body) == {"caller": OPEN}
    assert json.loads(ask(app, "POST", "/predict", [("x-api-key", "wrong")]).body) == {"caller": OPEN}
    config.auth = "keys"  # as a user_config does it, without a restart
    assert ask(app, "POST", "/predict").status == 401
    config.auth = "nonsense"
    assert ask(app, "POST", "/predict").status == 401


def test_an_endpoint_without_keys_lets_nobody_in() -> None:
    app = guarded(Keys({}))
    assert ask(app, "POST", "/predict", [("authorization", "Bearer ")]).status == 401
    assert ask(app, "POST", "/predict", [("authorization", "Bearer x")]).status == 403


def test_other_kinds_of_connection(keys: Keys) -> None:
    inner, sent = Inner(), list[Message]()
    app = guarded(keys, inner=inner)

    async def nothing() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app({**scope_of("GET", "/healthz", RIGHT), "type": "websocket"}, nothing, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    with pytest.raises(ValueError, match="unknown kind"):
        asyncio.run(app({**scope_of("GET", "/healthz", RIGHT), "type": "webtransport"}, nothing, send))
    assert inner.scopes == []
    asyncio.run(app({"type": "lifespan"}, nothing, send))
    assert [scope["type"] for scope in inner.scopes] == ["lifespan"]


def test_a_removed_key_is_refused_at_the_door(tmp_path: Path) -> None:
    clock = Clock()
    keys = Keys({}, clock=clock)
    new = create_key(str(tmp_path / "keys.json"), "ana")
    keys.follow(new.path)
    app = guarded(keys)
    header = [("authorization", f"Bearer {new.key}")]
    assert ask(app, "POST", "/predict", header).status == 200
    Path(new.path).write_text('{"version": 1, "keys": []}')
    clock.now += 3
    assert ask(app, "POST", "/predict", header).status == 403


def test_a_refused_request_is_answered_before_its_body(keys: Keys) -> None:
    async def scenario() -> None:
        async def never() -> Message:
            raise AssertionError("the body was asked for")

        app = guarded(keys, Config(rate_limit=0.5))
        assert (await call(app, "POST", "/predict", receive=never)).status == 401
        assert (await call(app, "POST", "/predict", WRONG, receive=never)).status == 403
        assert (await call(app, "POST", "/predict", RIGHT)).status == 200
        assert (await call(app, "POST", "/predict", RIGHT, receive=never)).status == 429

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/predict", "/v1/models/m:predict", "/v2/models/m/infer", "/invocations"])
def test_a_refusal_has_the_form_of_its_path(keys: Keys, path: str) -> None:
    reply = ask(guarded(keys), "POST", path)
    body = json.loads(reply.body)
    assert body == error_body(path, "no_key", reply.message)
    assert isinstance(body["error"], str) == path.startswith(("/v1", "/v2"))


def test_no_answer_and_no_log_tells_a_key(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    sent = [ANA, "er_wrong-but-mine"]
    signature = f"AWS4-HMAC-SHA256 Credential=ana/20250101/r/sagemaker/aws4_request, {sent[1]}"
    tried: list[Headers] = [
        [("authorization", f"Basic {sent[1]}")],
        [("authorization", f"Bearer {sent[1]}")],
        [("authorization", signature)],
        [("x-api-key", sent[1])],
        [("x-api-key", ANA), ("authorization", f"Bearer {sent[1]}")],
    ]

    async def nobody(_: float) -> None:
        return None

    with caplog.at_level(logging.DEBUG):
        app = guarded(keys, Config(rate_limit=0.1), sleep=nobody)
        replies = [ask(app, "POST", "/predict", headers) for headers in [*(tried * 5), RIGHT, RIGHT]]
    shown = caplog.text + "".join(reply.body.decode() + str(reply.headers) for reply in replies)
    assert "er_" not in shown


def test_keys_may_change_in_another_thread_under_load(keys: Keys, tmp_path: Path) -> None:
    paths = [create_key(str(tmp_path / f"{name}.json"), name).path for name in ("one", "two")]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for path in paths:
                keys.follow(path)

    worker = threading.Thread(target=change)
    worker.start()
    try:
        app = guarded(keys)

        async def load() -> set[int]:
            return {(await call(app, "POST", "/predict", RIGHT)).status for _ in range(2000)}

        assert asyncio.run(load()) == {200}
    finally:
        stop.set()
        worker.join()
